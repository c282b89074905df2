"""What ``decode`` says of rmap words, with and without a target.

This module needs the standard library only; GDB's Python imports it too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from inspector import encoding, hash_encoding

__all__ = ["words_json", "words_text"]

HASH_BITS = ("referenced", "changed", "locked")


def words_json(words: Iterable[int], *, of_hash: bool) -> dict[str, Any]:
    """Return the document of ``inspector decode --json``."""
    return {"schema": "inspector.decode/1", "words": list(_rows(words, of_hash))}


def words_text(words: Iterable[int], *, of_hash: bool) -> Iterator[str]:
    """Yield the lines of ``inspector decode``.

    Args:
        words: unsigned 64-bit rmap words, in host order.
        of_hash: the words are of a guest with the hash MMU.
    """
    for row in _rows(words, of_hash):
        yield f"{row['word']}  {_hash_text(row) if of_hash else _text(row)}"
        yield from (f"    {problem}" for problem in row.get("problems", ()))


def _rows(words: Iterable[int], of_hash: bool) -> Iterator[dict[str, Any]]:
    return map(_hash_decoded if of_hash else _decoded, words)


def _decoded(word: int) -> dict[str, Any]:
    form = encoding.form_of(word)
    row: dict[str, Any] = {"word": f"{word:#018x}", "form": form.value}
    if form is encoding.SlotForm.EMPTY:
        return row
    entry = encoding.decode(word)
    row |= {"lpid": entry.lpid, "gpa": f"{entry.gpa:#x}"}
    row["problems"] = encoding.problems(word, in_node=form is encoding.SlotForm.LIST)
    return row


def _text(row: dict[str, Any]) -> str:
    if row["form"] == "empty":
        return "empty slot"
    where = f"LPID {row['lpid']}, L2 address {row['gpa']}"
    if row["form"] == "list":
        return f"in a list node: {where}; in a slot or a next: a pointer to a list node"
    return f"single entry or end of a list: {where}"


def _hash_decoded(word: int) -> dict[str, Any]:
    row: dict[str, Any] = {"word": f"{word:#018x}", "form": "hash" if word else "empty"}
    if not word:
        return row
    decoded = hash_encoding.decode(word)
    row["index"] = None if decoded.index is None else f"{decoded.index:#x}"
    row |= {name: getattr(decoded, name) for name in HASH_BITS}
    row["problems"] = hash_encoding.problems(word)
    return row


def _hash_text(row: dict[str, Any]) -> str:
    if row["form"] == "empty":
        return "empty slot"
    index = row["index"]
    said = ["no HPT entry" if index is None else f"HPT index {index}"]
    return ", ".join(said + [name for name in HASH_BITS if row[name]])
