"""Physical memory that QEMU's stub is asked for, range by range; records are joined first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inspector.memory.base import U64, Records, read_one
from inspector.memory.ram import RamMap
from inspector.memory.ranges import merged
from inspector.memory.segments import SegmentedMemory

__all__ = ["ReadRanges", "StubMemory"]

MERGE_GAP = 1 << 11
"""Records closer than one packet of QEMU's stub are read as one range."""
RANGE_LIMIT = 1 << 17

ReadRanges = Callable[[list[tuple[int, int]]], list[bytes]]
"""Reads ``(physical address, length)`` ranges, all of them in RAM."""


class StubMemory:
    """Physical memory read through QEMU's stub.

    Args:
        read_ranges: asks the stub.
        ram: where RAM is; nothing else is asked for.
    """

    name = "physical"

    def __init__(self, read_ranges: ReadRanges, ram: RamMap) -> None:
        self._read_ranges = read_ranges
        self._ram = ram

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        return read_one(self, address, length)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        present = self._ram.covers(where, length)
        starts = where[present]
        if not starts.size:
            return Records(np.zeros((where.size, length), np.uint8), present)
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
        return Records(data, present)
