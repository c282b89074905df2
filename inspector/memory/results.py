"""Parts decoded from a memory, used again while the bytes that were read for them are the same.

Moments of a machine that are close to each other have most of their bytes in
common.  The decoder gives each part a key that contains everything that goes
into the part besides memory.  If no word that was read for a part has
changed, the part has not changed, either.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np

from inspector.memory.numbers import U64, addresses
from inspector.memory.ranges import Ranges
from inspector.memory.reads import WORD, Piece, RecordingMemory, ranges_of

__all__ = ["Making", "Results", "anew"]

Made = TypeVar("Made")


class Making(Protocol):
    """Makes a part with a function, or returns one that is known; parts may have parts."""

    def __call__(self, key: Hashable, make: Callable[[], Made]) -> Made: ...


def anew(key: Hashable, make: Callable[[], Made]) -> Made:
    """Make the part, for callers that use no part again."""
    return make()


@dataclass(frozen=True)
class _Result:
    value: Any
    pieces: tuple[Piece, ...]
    parts: dict[Hashable, _Result] = field(default_factory=dict)

    @cached_property
    def _ranges(self) -> Ranges:
        return ranges_of(self.pieces)

    def has_any(self, words: U64) -> bool:
        """Say whether any of the words at these addresses was read for the result."""
        if not words.size or not self._ranges.starts.size:
            return False
        starts, sizes = self._ranges
        # the last range that begins at or before the last byte of the word
        index = np.searchsorted(starts, words + np.uint64(WORD - 1), side="right") - 1
        return bool(np.any((index >= 0) & (words < starts[index] + sizes[index])))


class Results:
    """The parts of one moment.

    Args:
        record: the memory that they are made of.
        before: the parts of an earlier moment.
        changed: addresses of the words that have changed after that moment.
    """

    def __init__(
        self,
        record: RecordingMemory,
        before: Results | None = None,
        changed: U64 | None = None,
    ) -> None:
        self._record = record
        self._known = before._parts if before is not None else {}
        self._changed = addresses([]) if changed is None else changed
        self._parts: dict[Hashable, _Result] = {}

    def __call__(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return the part with a key: the earlier one if its words are unchanged, or a new one.

        Args:
            key: everything that goes into the part besides memory.
            make: makes the part of memory and the key, and of nothing else.
        """
        known = self._known.get(key)
        if known is None or known.has_any(self._changed):
            # while ``make`` runs, it finds and stores the parts of this part
            outer = self._known, self._parts
            self._known, self._parts = known.parts if known is not None else {}, {}
            begin = self._record.count
            try:
                value = make()
                known = _Result(value, self._record.since(begin), self._parts)
            finally:
                self._known, self._parts = outer
        else:
            self._record.add(known.pieces)
        self._parts[key] = known
        made: Made = known.value
        return made
