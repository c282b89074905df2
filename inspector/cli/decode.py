"""``inspector decode``."""

from __future__ import annotations

import json

import click

from inspector.cli.options import WordParam, json_option
from inspector.reports.words import words_json, words_text

__all__ = ["command"]


@click.command()
@click.argument("words", nargs=-1, required=True, type=WordParam())
@click.option("--hash", "of_hash", is_flag=True, help="words of a guest with the hash MMU")
@json_option
def command(words: tuple[int, ...], of_hash: bool, as_json: bool) -> None:
    """Decode rmap words, each with the three readings a slot can have."""
    if as_json:
        click.echo(json.dumps(words_json(words, of_hash=of_hash), indent=2))
        return
    for line in words_text(words, of_hash=of_hash):
        click.echo(line)
