"""Physical memory that is read from QEMU's stub in ranges, to which records are joined first.

An answer takes almost the same time for eight bytes as for two thousand.  So a
few records are read together with the bytes around them, which are kept while
the machine is stopped: tables and structures are read again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from inspector.live.terms import CHUNK as PACKET
from inspector.memory.interface import Records, read_one
from inspector.memory.numbers import U64, Bytes
from inspector.memory.ranges import Ranges, merged
from inspector.memory.segments import SegmentedMemory

__all__ = ["ReadRanges", "StubMemory"]

FEW = 16
"""Up to this many records are looked for in the packets that are kept; more are read directly."""
MERGE_GAP = PACKET
"""Records closer than one packet of QEMU's stub are read as one range."""
RANGE_LIMIT = 1 << 17
"""Bytes of one range that ``read_ranges`` is asked for."""

ReadRanges = Callable[[list[tuple[int, int]]], list[bytes]]
"""Reads ``(physical address, length)`` ranges, all of them in RAM."""


class StubMemory:
    """Physical memory read through QEMU's stub.

    Args:
        read_ranges: asks the stub.
        ram: where RAM is; nothing else is asked for.
        still: keeps the machine stopped for the length of a block; the end of
            the outermost block calls ``forget``.
    """

    name = "physical"

    def __init__(
        self,
        read_ranges: ReadRanges,
        ram: Ranges,
        still: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._read_ranges = read_ranges
        self.ram = ram
        self._still = still
        self._kept: dict[int, bytes] = {}

    def forget(self) -> None:
        """Drop the packets that were kept, because the machine runs again."""
        self._kept.clear()

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        return read_one(self, address, length)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        present = self.ram.cover(where, length)
        if not present.any():
            return Records(np.zeros((where.size, length), np.uint8), present)
        with self._still():
            return Records(self._read(where, present, length), present)

    def _read(self, where: U64, present: NDArray[np.bool_], length: int) -> Bytes:
        """Return records; those that are not in RAM are zeros."""
        starts = where[present]
        if starts.size <= FEW and length <= PACKET:
            return self._small(where, present, length)
        ranges = merged(starts, np.full(starts.size, length, np.uint64), MERGE_GAP)
        pieces = [
            (begin, min(RANGE_LIMIT, low + size - begin))
            for low, size in zip(ranges.starts.tolist(), ranges.sizes.tolist(), strict=True)
            for begin in range(low, low + size, RANGE_LIMIT)
        ]
        read = b"".join(self._read_ranges(pieces))
        found = SegmentedMemory.of_ranges(np.frombuffer(read, dtype=np.uint8), ranges)
        data = found.read_many(where, length).data
        data[~present] = 0
        return data

    def _small(self, where: U64, present: NDArray[np.bool_], length: int) -> Bytes:
        """Return a few records, out of whole packets that are kept."""
        # ``& -PACKET`` rounds down to a whole packet, whose size is a power of two
        wanted = [(i, int(where[i])) for i in np.flatnonzero(present)]
        blocks = {
            block
            for _, begin in wanted
            for block in range(begin & -PACKET, begin + length, PACKET)
            if block not in self._kept
        }
        if blocks:
            order = sorted(blocks)
            self._kept.update(
                zip(order, self._read_ranges([(block, PACKET) for block in order]), strict=True)
            )
        data = np.zeros((where.size, length), dtype=np.uint8)
        for row, begin in wanted:
            first = begin & -PACKET
            held = b"".join(self._kept[at] for at in range(first, begin + length, PACKET))
            data[row] = np.frombuffer(held, np.uint8, length, begin - first)
        return data
