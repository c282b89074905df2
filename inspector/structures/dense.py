"""A map that says which of many leaves translates an address, without a search.

Leaves usually lie close together, so a map with an element for each page of
the range they span is hardly larger than the leaves.  One access to the map
replaces a binary search, every step of which is far away in memory.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.memory.arrays import blocks
from inspector.memory.numbers import U64

__all__ = ["DenseMap"]

SPARSE = 4
"""Most pages of a map for each leaf."""


class DenseMap:
    """A map from pages to rows.

    Args:
        first: the address at which the map begins.
        unit: log2 of the size of its pages in bytes.
        rows: the row of each page's leaf, -1 where no leaf is; the last
            element is -1 and stands for all pages after the map.
    """

    def __init__(self, first: np.uint64, unit: np.uint64, rows: NDArray[np.int32]) -> None:
        self._first = first
        self._unit = unit
        self._rows = rows

    @classmethod
    def of(cls, address: U64, shift: NDArray[np.uint8]) -> DenseMap | None:
        """Return the map of some leaves, None if they are too far apart for one.

        Args:
            address: where each leaf begins, in order; no leaf overlaps the next.
            shift: log2 of the size of each leaf in bytes.
        """
        unit = shift.min()
        end = int(address[-1]) + (1 << int(shift[-1]))
        pages = (end - int(address[0])) >> int(unit)
        if pages > SPARSE * address.size:
            return None
        rows = np.full(pages + 1, -1, dtype=np.int32)
        for part in blocks(address.size):
            row = np.arange(part.start, part.stop, dtype=np.int32)
            page = ((address[part] - address[0]) >> np.uint64(unit)).view(np.int64)
            # One element for the first page of each leaf; larger leaves fill their other pages.
            rows[page] = row
            for large in np.flatnonzero(shift[part] != unit):
                size = 1 << int(shift[part][large] - unit)
                rows[page[large] : page[large] + size] = row[large]
        return cls(address[0], np.uint64(unit), rows)

    def find(self, where: U64) -> NDArray[np.int64]:
        """Return the row of the leaf that holds each address, or -1."""
        found = np.empty(where.size, dtype=np.int64)
        last = np.uint64(self._rows.size - 1)
        for part in blocks(where.size):
            # Unsigned: an address before the map wraps to a page far after it.
            page = where[part] - self._first
            page >>= self._unit
            np.minimum(page, last, out=page)
            found[part] = self._rows[page.view(np.int64)]
        return found
