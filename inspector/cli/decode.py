"""``inspector decode``."""

from __future__ import annotations

import json

import click

from inspector import encoding, hash_encoding
from inspector.cli.options import Word, json_option

__all__ = ["command"]

SCHEMA = "inspector.decode/1"
HASH_BITS = ("referenced", "changed", "locked")


def _decoded(word: int) -> dict[str, object]:
    form = encoding.form_of(word)
    row: dict[str, object] = {"word": f"{word:#018x}", "form": form.value}
    if form is encoding.SlotForm.EMPTY:
        return row
    entry = encoding.decode(word)
    row |= {"lpid": entry.lpid, "gpa": f"{entry.gpa:#x}"}
    row["problems"] = encoding.problems(word, in_node=form is encoding.SlotForm.LIST)
    return row


def _text(row: dict[str, object]) -> str:
    if row["form"] == "empty":
        return f"{row['word']}  empty slot"
    where = f"LPID {row['lpid']}, L2 address {row['gpa']}"
    if row["form"] == "list":
        text = f"in a list node: {where}; in a slot or a next: a pointer to a list node"
    else:
        text = f"single entry or end of a list: {where}"
    return _with_problems(f"{row['word']}  {text}", row["problems"])


def _hash_decoded(word: int) -> dict[str, object]:
    row: dict[str, object] = {"word": f"{word:#018x}", "form": "hash" if word else "empty"}
    if not word:
        return row
    decoded = hash_encoding.decode(word)
    row["index"] = None if decoded.index is None else f"{decoded.index:#x}"
    row |= {name: getattr(decoded, name) for name in HASH_BITS}
    row["problems"] = hash_encoding.problems(word)
    return row


def _hash_text(row: dict[str, object]) -> str:
    if row["form"] == "empty":
        return f"{row['word']}  empty slot"
    index = row["index"]
    said = ["no HPT entry" if index is None else f"HPT index {index}"]
    said += [name for name in HASH_BITS if row[name]]
    return _with_problems(f"{row['word']}  {', '.join(said)}", row["problems"])


def _with_problems(text: str, problems: object) -> str:
    assert isinstance(problems, list)
    return text + "".join(f"\n    {problem}" for problem in problems)


@click.command()
@click.argument("words", nargs=-1, required=True, type=Word())
@click.option("--hash", "of_hash", is_flag=True, help="words of a guest with the hash MMU")
@json_option
def command(words: tuple[int, ...], of_hash: bool, as_json: bool) -> None:
    """Decode rmap words, each with the three readings a slot can have."""
    decoded, text = (_hash_decoded, _hash_text) if of_hash else (_decoded, _text)
    rows = [decoded(word) for word in words]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "words": rows}, indent=2))
        return
    for row in rows:
        click.echo(text(row))
