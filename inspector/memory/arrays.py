"""Sets of numbers in arrays.

NumPy's own functions for sets import its masked arrays when first called,
which takes longer than a live machine stands still.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growing", "blocks", "distinct", "first_of_each", "is_in", "joined", "places_in"]

FIRST_ROOM = 1 << 20
"""So many rows have room at once."""

Number = TypeVar("Number", bound=np.generic)

BLOCK = 1 << 16
"""So many numbers stay in a processor's cache between one step and the next."""


def blocks(size: int) -> Iterator[slice]:
    """Yield the parts in which long arrays are worked through."""
    for begin in range(0, size, BLOCK):
        yield slice(begin, min(begin + BLOCK, size))


class Growing:
    """Columns of numbers that are filled piece by piece.

    Args:
        room: as many rows as there are said to be at most.  It may be any
            number: memory is taken for those that come.
        types: the type of each column.
    """

    def __init__(self, room: int, *types: type[np.generic]) -> None:
        self._room = min(room, FIRST_ROOM)
        self._columns = [np.empty(self._room, dtype=kind) for kind in types]
        self._rows = 0

    def append(self, *pieces: NDArray[Any]) -> None:
        """Add rows: an array for each column."""
        end = self._rows + pieces[0].size
        if end > self._room:
            self._room = max(end, self._room + self._room // 4)
            for column in self._columns:
                # in place, where the allocator can
                column.resize(self._room, refcheck=False)
        for column, piece in zip(self._columns, pieces, strict=True):
            column[self._rows : end] = piece
        self._rows = end

    @property
    def columns(self) -> list[NDArray[Any]]:
        """What has come."""
        return [column[: self._rows] for column in self._columns]


def joined(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """Return arrays one behind the other; one that is not empty by itself is not copied."""
    filled = [part for part in parts if part.size]
    return filled[0] if len(filled) == 1 else np.concatenate(filled or parts[:1])


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Return the values in order, each once."""
    ordered = np.sort(values)
    return ordered[_begins(ordered)]


def first_of_each(values: NDArray[Number]) -> NDArray[np.int64]:
    """Return where each value stands for the first time, in the values' order."""
    order = np.argsort(values, kind="stable")
    return order[_begins(values[order])]


def places_in(values: NDArray[Number], ordered: NDArray[Number]) -> NDArray[np.int64]:
    """Return the index of each value in an ordered array, -1 where it is not there."""
    if not ordered.size:
        return np.full(values.size, -1, dtype=np.int64)
    index = np.searchsorted(ordered, values)
    index[index == ordered.size] = 0
    return np.where(ordered[index] == values, index, -1)


def is_in(values: NDArray[Number], others: NDArray[Number]) -> NDArray[np.bool_]:
    """Tell which values are among others."""
    found: NDArray[np.bool_] = places_in(values, np.sort(others)) >= 0
    return found


def _begins(ordered: NDArray[Number]) -> NDArray[np.bool_]:
    begins = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins
