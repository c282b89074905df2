"""``inspector schema``."""

from __future__ import annotations

import click

from inspector.schemas import names, schema_text

__all__ = ["command"]


@click.command()
@click.argument("document", required=False)
def command(document: str | None) -> None:
    """Print the JSON Schema of a document, or list the documents.

    DOCUMENT is the part of a document's member 'schema' after
    'inspector.', without its version for the newest one: 'check', or
    'check.1' for version 1.
    """
    if document is None:
        for name in names():
            click.echo(name)
        return
    text = schema_text(document)
    if text is None:
        raise click.BadParameter(
            f"there is no document '{document}' ('inspector schema' lists them)",
            param_hint="DOCUMENT",
        )
    click.echo(text, nl=False)
