"""Ranges of addresses, sorted and apart from each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.memory.numbers import U64, addresses

__all__ = ["Ranges", "merged"]


class Ranges(NamedTuple):
    """Row i of the two arrays: the address and the length in bytes of range i, in address order."""

    starts: U64
    sizes: U64

    @property
    def places(self) -> U64:
        """Where each range begins in a buffer that holds them one after the other."""
        return np.cumsum(self.sizes, dtype=np.uint64) - self.sizes

    @property
    def total(self) -> int:
        """Bytes in all ranges."""
        return int(self.sizes.sum(dtype=np.uint64))

    def cover(self, where: U64, length: int) -> NDArray[np.bool_]:
        """Tell which records of ``length`` bytes lie wholly in one range."""
        if not self.starts.size:
            return np.zeros(where.size, dtype=np.bool_)
        # An index of -1 (no range begins that low) takes the last row; it is discarded below.
        index = np.searchsorted(self.starts, where, side="right").astype(np.int64) - 1
        inside = where - self.starts[index]
        size = self.sizes[index]
        # the minimum keeps an unsigned difference from wrapping around
        room = size - np.minimum(inside, size)
        whole: NDArray[np.bool_] = (index >= 0) & (inside < size) & (room >= np.uint64(length))
        return whole

    def hold(self, address: int) -> bool:
        """Say whether an address is in one of the ranges."""
        return any(
            start <= address < start + size
            for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)
        )

    def widened(self, unit: int) -> Ranges:
        """Return the ranges rounded out to whole units; ``unit`` is a power of two."""
        inside = np.uint64(unit - 1)
        starts = self.starts & ~inside
        ends = (self.starts + self.sizes + inside) & ~inside
        return merged(starts, ends - starts)

    def union(self, other: Ranges) -> Ranges:
        """Return the ranges of the addresses that are in this one, the other, or both."""
        return merged(
            np.concatenate((self.starts, other.starts)), np.concatenate((self.sizes, other.sizes))
        )


def merged(starts: U64, sizes: U64, gap: int = 0) -> Ranges:
    """Join ranges that overlap, touch, or are no further than ``gap`` bytes apart."""
    if not starts.size:
        return Ranges(addresses([]), addresses([]))
    order = np.argsort(starts, kind="stable")
    starts, sizes = starts[order], sizes[order]
    # reach[i] is the highest end of the ranges up to i; a range that begins beyond it is apart
    reach = np.maximum.accumulate(starts + sizes)
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] > reach[:-1] + np.uint64(gap))))
    last = np.concatenate((begins[1:] - 1, [starts.size - 1]))
    return Ranges(starts[begins], reach[last] - starts[begins])
