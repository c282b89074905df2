"""``inspector report``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from inspector.checks.verdict import Judgement, judge
from inspector.cli.check import EXIT_CODES
from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import Target, json_option, output_option, target_options
from inspector.errors import InspectorError
from inspector.plugins import REPORTS, plugins
from inspector.reports.figures import figures_of
from inspector.reports.jsonform import check_json
from inspector.reports.page import page, page_of_document
from inspector.session import Acquired
from inspector.storage import Output, contents_of

__all__ = ["command"]

DOCUMENT_LIMIT = 1 << 30
"""Limit of a document in bytes; one of a hundred thousand findings has a quarter of it."""
JSON_BEGINS = b"{"
PAGE = "page"


def _is_document(name: str) -> bool:
    if not os.path.isfile(name):
        return False
    # An error here is reported when the file is opened as a target.
    with contextlib.suppress(OSError), open(name, "rb") as file:
        return file.read(64).lstrip()[:1] == JSON_BEGINS
    return False


def _by_plugin(name: str, form: Any, acquired: Acquired, judgement: Judgement) -> str:
    try:
        text = form(acquired, judgement)
        if not isinstance(text, str):
            raise TypeError(f"it returned {type(text).__name__}, not text")
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        raise InspectorError(
            f"the plug-in {name} could not make its report: {error!r}; ask its author, "
            f"or use --form {PAGE}"
        ) from error
    return text


@click.command()
@target_options
@json_option
@output_option
@click.option(
    "--form", default=PAGE, show_default=True, help="the page, or a form that a plug-in offers"
)
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool, output: Output, form: str) -> None:
    """Write the result of a check as one self-contained HTML page.

    TARGET may also be a file that 'inspector check --json' has written; the
    page then shows the contents of that file, and no charts.  Exit codes are
    those of 'inspector check'.
    """
    if _is_document(target.name):
        if form != PAGE:
            raise click.UsageError("a plug-in's form needs the target itself, not its document")
        document, text = page_of_document(
            contents_of(Path(target.name), DOCUMENT_LIMIT), target.name
        )
    else:
        forms = dict(plugins(REPORTS)) if form != PAGE else {}
        if form != PAGE and form not in forms:
            known = ", ".join((PAGE, *forms))
            raise click.BadParameter(f"there is no form '{form}' (there are: {known})")
        acquired = open_target(target)
        judgement = judge(acquired.snapshot)
        document = check_json(acquired, judgement)
        if form == PAGE:
            text = page(document, figures_of(judgement))
        else:
            text = _by_plugin(form, forms[form], acquired, judgement)
    data = text.encode("utf-8", "backslashreplace")
    aside = output.is_standard
    output.write(data)
    verdict = document["verdict"]
    if as_json:
        print_json(
            {
                "schema": "inspector.report/1",
                "target": document["target"],
                "file": output.name,
                "bytes": len(data),
                "verdict": verdict,
            },
            err=aside,
        )
    else:
        say(f"{output}: {len(data) / 1024:.0f} KiB, verdict: {verdict}", err=aside)
    ctx.exit({one.value: code for one, code in EXIT_CODES.items()}.get(verdict, 3))
