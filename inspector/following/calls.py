"""Recordings of the calls by which a kernel changes nested reverse maps.

A recording is made from outside while the kernel runs (the lab's
``lab up --record``).  It is text, one JSON object per line; see
``manual/trace.md``.  A machine that still runs may be in the middle of the
last line, which is then passed over.
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
"""Which argument of an insertion, or of an update of R and C, is the slot."""

_NO_READINGS = frozenset({"n", "cpu", "f", "in", "args", "ret", "slot", "slots"})


@dataclass(frozen=True)
class CallRecording:
    """A recording: the kernel it was made of, and its lines."""

    name: str
    release: str
    page_shift: int
    functions: frozenset[str]
    lines: tuple[bytes, ...]

    def events(self) -> Iterator[Call | Return]:
        """Yield calls and returns in the order in which they happened.

        Raises:
            BadData: a line is not what the format says.
        """
        reader = _Reader()
        for number, line in enumerate(self.lines, 2):
            try:
                yield reader.event(parsed_json(line))
            except DAMAGE as error:
                raise BadData(
                    f"line {number} of the recording {self.name} is damaged: {error!r}"
                ) from error


def read_calls(path: Path) -> CallRecording:
    """Open a recording, packed with xz, zstd or gzip or not packed.

    Raises:
        BadData: it is none, or one of a newer format.
    """
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
            f"{path} is no recording of calls; make one with 'lab up --record FILE'"
        ) from error
    raise BadData(f"{path} has the format {schema}, this version reads {SCHEMA}")


class _Reader:
    """Makes events of lines; a return needs to know of its call."""

    def __init__(self) -> None:
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
    if "slot" in row:
        return {place: _words(row["slot"])}
    found = row.get("slots") or ()
    return {(place + WORD * int(index)) & ((1 << 64) - 1): _words(words) for index, *words in found}


def _words(items: list[str | None]) -> SlotWords:
    return tuple(map(_word, items))


def _word(item: str | None) -> int | None:
    if item is None:
        return None
    word = int(item, 16)
    if not 0 <= word < (1 << 64):
        raise ValueError(f"{item} is no word of 64 bits")
    return word
