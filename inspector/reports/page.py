"""One self-contained page of a check: opens offline, readable in light and dark.

The page is made from the document of ``inspector check --json`` and, if there
is a snapshot, from the figures counted in it.  Everything is escaped: text
in a target is not trusted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from inspector import __version__
from inspector.errors import BadData, InspectorError, TargetNotSupported, printable
from inspector.reports.figures import Figures
from inspector.storage import strict_json

__all__ = ["page", "page_of_document"]

SCHEMA = "inspector.check/1"
TEMPLATE = "page.html"


def page_of_document(text: bytes, name: str) -> tuple[dict[str, Any], str]:
    """Return the document that ``inspector check --json`` has written to a file, and its page.

    Raises:
        BadData: the file holds no such document.
        TargetNotSupported: the packages that reports need are not installed.
    """
    try:
        document = strict_json(text)
        if document["schema"] != SCHEMA:
            raise BadData(
                f"{name} is a document {document['schema']!r}; a report is made from one of "
                "'inspector check --json', or from the target itself"
            )
        return document, page(document)
    except InspectorError:
        raise
    except Exception as error:  # a damaged document can make the template raise anything
        raise BadData(
            f"{name} is no complete document of 'inspector check --json' ({error!r}); make it again"
        ) from error


def page(document: dict[str, Any], figures: Sequence[Figures] = ()) -> str:
    """Return the page of a check.

    Args:
        document: the document of ``inspector check --json``.
        figures: the figures to draw for each VM, if there is a snapshot.

    Raises:
        TargetNotSupported: the packages that reports need are not installed.
    """
    from inspector.reports import charts

    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise TargetNotSupported(
            "reports need packages that are not installed; "
            "install them with pip install 'kvmhv-inspector[report]'"
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["drawn"] = Markup
    template = environment.from_string(
        files("inspector.reports").joinpath(TEMPLATE).read_text(encoding="utf-8")
    )
    shift = int(document["target"]["page_size"]).bit_length() - 1
    return template.render(
        version=__version__,
        document=document,
        target=document["target"],
        figures={one.lpid: one for one in figures},
        charts=charts,
        page_shift=shift,
        raw=json.dumps(document).replace("<", "\\u003c"),
    )
