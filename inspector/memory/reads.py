"""Record every byte that is read, and nothing else.

A live machine is read through a recorder while it is stopped.  The recording
is then a memory of its own: decoding runs on it after the machine has
resumed, a capture file is made of it, and both see the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.memory.arrays import distinct
from inspector.memory.interface import AddressSpace, PhysicalMemory, Records
from inspector.memory.numbers import U64, Bytes, addresses
from inspector.memory.ranges import Ranges, merged
from inspector.memory.segments import SegmentedMemory

__all__ = ["WORD", "Piece", "RecordingMemory", "ranges_of"]

WORD = 8
"""Bytes of the words in which memory is compared."""
LONG = 1 << 10
"""Records of at least this many bytes are copied and compared one by one."""


class Piece(NamedTuple):
    """Records of one length: row i of ``data`` holds the bytes at address ``where[i]``."""

    where: U64
    data: Bytes


def ranges_of(pieces: Iterable[Piece]) -> Ranges:
    """Return the ranges of memory that the pieces cover."""
    return merged(*_places(pieces))


def _places(pieces: Iterable[Piece]) -> tuple[U64, U64]:
    """Return the address and the length in bytes of each record."""
    pieces = tuple(pieces)
    if not pieces:
        return addresses([]), addresses([])
    sizes = [np.full(len(data), data.shape[1], np.uint64) for _, data in pieces]
    return np.concatenate([where for where, _ in pieces]), np.concatenate(sizes)


class RecordingMemory:
    """A physical memory that passes reads on and keeps the bytes that were read."""

    def __init__(self, inner: PhysicalMemory) -> None:
        self.name = inner.name
        self._inner = inner
        self._pieces: list[Piece] = []

    def read(self, address: int, length: int) -> bytes:
        """Return and record ``length`` bytes at a physical address."""
        piece = self._inner.read(address, length)
        data = np.frombuffer(piece, dtype=np.uint8).reshape(1, length)
        self._pieces.append(Piece(addresses([address]), data))
        return piece

    def read_many(self, where: U64, length: int) -> Records:
        """Return and record ``length`` bytes at each physical address."""
        data, present = records = self._inner.read_many(where, length)
        if not present.all():
            where, data = where[present], data[present]
        if data.size:
            self._pieces.append(Piece(where, data))
        return records

    @property
    def ram(self) -> Ranges | None:
        """Where the machine has memory, None if that is not known."""
        return self._inner.ram

    @property
    def unrecorded(self) -> AddressSpace:
        """The memory itself, for reads that are only guesses and are not to be recorded."""
        return self._inner

    @property
    def count(self) -> int:
        """How many pieces are recorded."""
        return len(self._pieces)

    def since(self, count: int) -> tuple[Piece, ...]:
        """Return the pieces that were recorded after the first ``count``."""
        return tuple(self._pieces[count:])

    def add(self, pieces: Iterable[Piece]) -> None:
        """Record pieces that are known already, without reading their bytes again."""
        self._pieces += pieces

    def ranges(self) -> Ranges:
        """Return the ranges of memory that were read."""
        return ranges_of(self._pieces)

    def freeze(self) -> SegmentedMemory:
        """Return the recorded bytes as an immutable memory of merged segments."""
        ranges = self.ranges()
        buffer = np.empty(ranges.total, dtype=np.uint8)
        # ``into`` says where in the buffer each record of the piece belongs
        for (_, data), into in zip(self._pieces, self._inside(ranges), strict=True):
            count, length = data.shape
            if length >= LONG or count == 1:
                for row, place in zip(data, into, strict=True):
                    buffer[place : place + length] = row
            else:
                buffer[into[:, None] + np.arange(length)] = data
        buffer.setflags(write=False)
        return SegmentedMemory.of_ranges(buffer, ranges, self.ram)

    def departures(self, copy: Bytes, ranges: Ranges) -> U64:
        """Return the addresses of the words whose recorded bytes differ from a later copy.

        Args:
            copy: the bytes of the ranges, one range after the other.
            ranges: the ranges that were copied; they contain every recorded byte.
        """
        found = [addresses([])]
        # ``where`` has the address of each record of the piece, ``places`` its place in the copy
        for (where, data), places in zip(self._pieces, self._inside(ranges), strict=True):
            count, length = data.shape
            if length >= LONG or count == 1:
                rows = [copy[place : place + length] for place in places]
                differing = [np.flatnonzero(a != b) for a, b in zip(rows, data, strict=True)]
                found += [
                    where[row] + columns.astype(np.uint64)
                    for row, columns in enumerate(differing)
                    if columns.size
                ]
            else:
                lines, columns = np.nonzero(copy[places[:, None] + np.arange(length)] != data)
                found.append(where[lines] + columns.astype(np.uint64))
        return distinct(np.concatenate(found) & ~np.uint64(WORD - 1))

    def _inside(self, ranges: Ranges) -> list[NDArray[np.int64]]:
        """Return, for each piece, where its records lie in a buffer that holds the ranges."""
        if not self._pieces:
            return []
        starts, _ = _places(self._pieces)
        group = np.searchsorted(ranges.starts, starts, side="right") - 1
        places = (ranges.places[group] + (starts - ranges.starts[group])).astype(np.int64)
        ends = np.cumsum([len(where) for where, _ in self._pieces])
        return np.split(places, ends[:-1])
