"""Recordings of the calls by which a kernel changes nested reverse maps.

A recording is made from outside while the kernel runs (the lab's
``lab up --record``).  It is text, one JSON object per line; see
``manual/trace.md``.  If the machine still runs, the last line may be
incomplete, and is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspector.errors import BadData
from inspector.image.elf import unpacked
from inspector.model.events import Call, Return, SlotWords
from inspector.storage import DAMAGE, parsed_json

__all__ = ["SCHEMA", "CallRecording", "read_calls"]

SCHEMA = "inspector.recording/1"
WORD = 8
SLOT_ARGUMENT = 1
"""Index of the slot in the arguments of an insertion, or of an update of R and C."""

_NO_READINGS = frozenset({"n", "cpu", "f", "in", "args", "ret", "slot", "slots"})
"""Members of a line with a meaning of their own; every other member is a word by its name."""


@dataclass(frozen=True)
class CallRecording:
    """A recording: the kernel that it was made of, and its lines without the header."""

    name: str
    release: str
    page_shift: int
    functions: frozenset[str]
    lines: tuple[bytes, ...]

    def events(self) -> Iterator[Call | Return]:
        """Yield calls and returns in the order in which they happened.

        Raises:
            BadData: a line does not follow the format.
        """
        reader = _Reader()
        # Line 1 is the header.
        for number, line in enumerate(self.lines, 2):
            try:
                yield reader.event(parsed_json(line))
            except DAMAGE as error:
                raise BadData(
                    f"line {number} of the recording {self.name} is damaged: {error!r}"
                ) from error


def read_calls(path: Path) -> CallRecording:
    """Open a recording, which may be compressed with xz, zstd or gzip.

    Raises:
        BadData: it is not a recording, or it has a newer format.
    """
    # The text after the last newline is an incomplete line, or empty.
    *lines, _ = unpacked(path).split(b"\n")
    try:
        header = parsed_json(lines[0])
        schema = header["schema"]
        if schema == SCHEMA:
            return CallRecording(
                str(path),
                str(header["release"]),
                int(header["page_shift"]),
                frozenset(map(str, header["functions"])),
                tuple(lines[1:]),
            )
    except DAMAGE as error:
        raise BadData(
            f"{path} is not a recording of calls; make one with 'lab up --record FILE'"
        ) from error
    raise BadData(f"{path} has the format {schema}, this version reads {SCHEMA}")


class _Reader:
    """Turns lines into events."""

    def __init__(self) -> None:
        # The line of a return has no address: this has the one of its call, by number.
        self._places: dict[int, int] = {}

    def event(self, row: dict[str, Any]) -> Call | Return:
        number = int(row["n"])
        values = {name: _word(row[name]) for name in row.keys() - _NO_READINGS}
        if "ret" in row:
            place = self._places.pop(number, 0)
            return Return(number, _word(row["ret"]) or 0, values, _slots(row, place))
        arguments = tuple(_word(item) or 0 for item in row["args"])
        place = values.get("rmap") or 0 if "slots" in row else 0
        if "slot" in row:
            place = arguments[SLOT_ARGUMENT]
        self._places[number] = place
        parent = int(row["in"]) if "in" in row else None
        return Call(number, str(row["f"]), arguments, parent, values, _slots(row, place))


def _slots(row: dict[str, Any], place: int) -> dict[int, SlotWords]:
    """Return the slots of a line; ``place`` is the address of the slot, or of its array."""
    if "slot" in row:
        return {place: _words(row["slot"])}
    found = row.get("slots") or ()
    # The kernel may take a slot below its array, so an index may be negative.
    return {(place + WORD * int(index)) & ((1 << 64) - 1): _words(words) for index, *words in found}


def _words(items: list[str | None]) -> SlotWords:
    return tuple(map(_word, items))


def _word(item: str | None) -> int | None:
    if item is None:
        return None
    word = int(item, 16)
    if not 0 <= word < (1 << 64):
        raise ValueError(f"{item} is not a 64-bit word")
    return word
