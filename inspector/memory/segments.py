"""Segments of physical memory in one buffer or file.

ELF cores, raw images and recordings of a live machine all become this:
contents, and a table that says where in the contents each run of physical
addresses lies.  A file may have any size; only the bytes that are asked for
are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from inspector.errors import MemoryNotReadable
from inspector.memory.contents import BytesLost, Contents, HeldContents
from inspector.memory.interface import ABSENT, NOT_THERE, Records, read_singly
from inspector.memory.numbers import U64, Bytes, addresses, is_address
from inspector.memory.ranges import Ranges

__all__ = ["MissingRanges", "SegmentedMemory"]


class MissingRanges(NamedTuple):
    """Ranges that are known to be memory, and the reason why their bytes are missing."""

    why: str
    ranges: Ranges


class SegmentedMemory:
    """Physical memory made of segments of one buffer or file.

    Args:
        contents: the bytes.
        starts: the physical address of each segment.
        sizes: the length of each segment in bytes.
        offsets: where each segment begins in ``contents``.
        lost: ranges that are known to be memory, but are not in ``contents``.
        ram: where the machine has memory at all, None if that is not known.

    Segments may come in any order.  Where two overlap, the one that starts
    first wins, as in QEMU's own reader of its dumps.  A read may cross from
    one segment into an adjacent one.
    """

    name = "physical"

    def __init__(
        self,
        contents: Bytes | Contents,
        starts: U64,
        sizes: U64,
        offsets: U64,
        lost: Sequence[MissingRanges] = (),
        ram: Ranges | None = None,
    ) -> None:
        order = np.argsort(starts, kind="stable")
        starts, sizes, offsets = starts[order], sizes[order], offsets[order]
        # Row i is one segment, by its start.  ``covered`` is the highest end of the segments
        # before it: what lies below that is cut off, and a segment with no rest is dropped.
        ends = np.maximum.accumulate(starts + sizes) if starts.size else starts
        covered = np.concatenate((addresses([0]), ends[:-1]))[: starts.size]
        overlap = np.minimum(np.maximum(covered, starts) - starts, sizes)
        keep = overlap < sizes
        self._contents = HeldContents(contents) if isinstance(contents, np.ndarray) else contents
        self.starts = (starts + overlap)[keep]
        self.sizes = (sizes - overlap)[keep]
        self.offsets = (offsets + overlap)[keep]
        self._ends = self.starts + self.sizes
        self._lost = lost
        self.ram = ram

    @classmethod
    def of_ranges(cls, buffer: Bytes, ranges: Ranges, ram: Ranges | None = None) -> SegmentedMemory:
        """Return the memory of ranges whose bytes are stored in a buffer one after the other."""
        return cls(buffer, ranges.starts, ranges.sizes, ranges.places, ram=ram)

    def within(self, ram: Ranges | None) -> SegmentedMemory:
        """Return the same memory, with ``ram`` for where the machine has memory."""
        return SegmentedMemory(
            self._contents, self.starts, self.sizes, self.offsets, self._lost, ram
        )

    @property
    def end(self) -> int:
        """The first address after all segments."""
        return int(self._ends[-1]) if self._ends.size else 0

    def has(self, address: int) -> bool:
        """Say whether the byte at an address is here."""
        index = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        return index >= 0 and address < int(self._ends[index])

    def view(
        self, starts: U64, sizes: U64, offsets: U64, lost: Sequence[MissingRanges] = ()
    ) -> SegmentedMemory:
        """Return a memory whose segments lie in this one, at the addresses ``offsets``.

        Bytes of a segment that are missing here are missing there, too.
        """
        # A new segment may cover several of the segments here.  The arrays that follow have one
        # row for each such piece: ``segment`` is its index among the new segments, ``piece``
        # among those here.
        first = np.searchsorted(self._ends, offsets, side="right")
        last = np.searchsorted(self.starts, offsets + sizes, side="left")
        count = np.maximum(last, first) - first
        segment = np.repeat(np.arange(starts.size), count)
        piece = np.arange(segment.size) + np.repeat(first - np.cumsum(count) + count, count)
        begin = np.maximum(self.starts[piece], offsets[segment])
        end = np.minimum(self._ends[piece], (offsets + sizes)[segment])
        return SegmentedMemory(
            self._contents,
            starts[segment] + (begin - offsets[segment]),
            end - begin,
            self.offsets[piece] + (begin - self.starts[piece]),
            lost,
        )

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        pieces = []
        position, left = address, length
        while left > 0:
            index = -1
            if is_address(position):
                index = int(np.searchsorted(self.starts, np.uint64(position), side="right")) - 1
            if index < 0 or position >= int(self._ends[index]):
                raise MemoryNotReadable(address, length, self._why(position))
            inside = position - int(self.starts[index])
            take = min(left, int(self.sizes[index]) - inside)
            try:
                pieces.append(self._contents.read(int(self.offsets[index]) + inside, take))
            except BytesLost as error:
                raise MemoryNotReadable(address, length, str(error)) from error
            position += take
            left -= take
        return b"".join(pieces)

    def _why(self, address: int) -> str:
        for why, (starts, sizes) in self._lost if is_address(address) else ():
            # unsigned: a start above the address gives a difference greater than any size
            if np.any(np.uint64(address) - starts < sizes):
                return why
        if self.ram is None:
            return NOT_THERE if is_address(address) else ABSENT
        return NOT_THERE if self.ram.hold(address) else ABSENT

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        present = np.zeros(where.size, dtype=np.bool_)
        if not self.starts.size or not where.size:
            return Records(np.zeros((where.size, length), dtype=np.uint8), present)
        index = np.searchsorted(self.starts, where, side="right").astype(np.int64) - 1
        known = index >= 0
        index[~known] = 0
        inside = where - self.starts[index]
        known &= inside < self.sizes[index]
        # ``known``: the first byte is in a segment; ``whole``: all bytes are in that segment
        whole = known & (self.sizes[index] - np.minimum(inside, self.sizes[index]) >= length)
        offsets = self.offsets[index] + inside
        data = np.zeros((where.size, length), dtype=np.uint8)
        if whole.all():
            return Records(data, self._contents.gather(offsets, data))
        rows = np.flatnonzero(whole)
        found = np.zeros((rows.size, length), dtype=np.uint8)
        present[rows] = self._contents.gather(offsets[rows], found)
        data[rows] = found
        # the others may continue in the adjacent segment
        records = Records(data, present)
        read_singly(self, where, np.flatnonzero(known & ~whole), records)
        return records
