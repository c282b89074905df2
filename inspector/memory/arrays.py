"""Set operations on arrays of numbers.

NumPy's own set functions import its masked arrays when they are first called,
which takes longer than a live machine is kept stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Growing", "blocks", "distinct", "first_of_each", "is_in", "joined", "places_in"]

FIRST_ROOM = 1 << 20
"""Rows that are allocated at first, at most."""

Number = TypeVar("Number", bound=np.generic)

BLOCK = 1 << 16
"""Numbers in a block: few enough to stay in a processor's cache from one step to the next."""


def blocks(size: int) -> Iterator[slice]:
    """Yield the parts in which long arrays are worked through."""
    for begin in range(0, size, BLOCK):
        yield slice(begin, min(begin + BLOCK, size))


class Growing:
    """Columns of numbers that are filled piece by piece.

    Args:
        room: the number of rows that are expected at most.  It may be any
            number: memory is allocated as rows are appended.
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
                # The allocator can often extend the column in place.  No view of a column may be
                # in use, because refcheck is off.
                column.resize(self._room, refcheck=False)
        for column, piece in zip(self._columns, pieces, strict=True):
            column[self._rows : end] = piece
        self._rows = end

    @property
    def columns(self) -> list[NDArray[Any]]:
        """The rows so far, one array for each column, as views of the buffers."""
        return [column[: self._rows] for column in self._columns]


def joined(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """Return the arrays one after the other; if only one is not empty, it is not copied."""
    filled = [part for part in parts if part.size]
    return filled[0] if len(filled) == 1 else np.concatenate(filled or parts[:1])


def distinct(values: NDArray[Number]) -> NDArray[Number]:
    """Return the values in ascending order, each once."""
    ordered = np.sort(values)
    return ordered[_begins(ordered)]


def first_of_each(values: NDArray[Number]) -> NDArray[np.int64]:
    """Return the index at which each value occurs first, in ascending order of the values."""
    order = np.argsort(values, kind="stable")
    return order[_begins(values[order])]


def places_in(values: NDArray[Number], ordered: NDArray[Number]) -> NDArray[np.int64]:
    """Return the index of each value in an ascending array, -1 for a value that is not in it."""
    if not ordered.size:
        return np.full(values.size, -1, dtype=np.int64)
    index = np.searchsorted(ordered, values)
    # such a value is greater than all others, so the comparison with any of them fails
    index[index == ordered.size] = 0
    return np.where(ordered[index] == values, index, -1)


def is_in(values: NDArray[Number], others: NDArray[Number]) -> NDArray[np.bool_]:
    """Tell which values are among others."""
    found: NDArray[np.bool_] = places_in(values, np.sort(others)) >= 0
    return found


def _begins(ordered: NDArray[Number]) -> NDArray[np.bool_]:
    """Tell which values differ from the value before."""
    begins = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins
