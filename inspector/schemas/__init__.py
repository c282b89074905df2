"""The JSON Schemas of the documents that commands print, one file each.

The files are named ``NAME.VERSION.json`` and refer to no other file.
``python -m fixtures.schemas`` writes them, in a checkout.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["names", "schema_text"]

SUFFIX = ".json"


def names() -> tuple[str, ...]:
    """Return ``NAME.VERSION`` of every schema, those of one name in the order of versions."""
    found = [file.name for file in files(__name__).iterdir()]
    stems = [name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)]
    return tuple(sorted(stems, key=_order))


def _order(name: str) -> tuple[str, int]:
    document, _, version = name.partition(".")
    return document, int(version)


def schema_text(name: str) -> str | None:
    """Return a schema as JSON text, or None if there is no such document.

    Args:
        name: ``NAME.VERSION``, or ``NAME`` for its newest version.
    """
    versions = [one for one in names() if name in (one, one.partition(".")[0])]
    if not versions:
        return None
    return files(__name__).joinpath(versions[-1] + SUFFIX).read_text(encoding="utf-8")
