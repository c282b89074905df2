"""What was made of a memory, used again as long as the bytes it was made of are the same.

Moments of a machine that are close to each other have most of their bytes in
common.  Whoever decodes names each part by all that goes into it beside
memory; if nothing of what was read for a part has changed, the part has not.
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
    """Makes a part by a function, or knows it already; parts may have parts."""

    def __call__(self, key: Hashable, make: Callable[[], Made]) -> Made: ...


def anew(key: Hashable, make: Callable[[], Made]) -> Made:
    """Make a part, without knowing any."""
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
        """Say whether one of some words, given by their addresses, was read for it."""
        if not words.size or not self._ranges.starts.size:
            return False
        starts, sizes = self._ranges
        index = np.searchsorted(starts, words + np.uint64(WORD - 1), side="right") - 1
        return bool(np.any((index >= 0) & (words < starts[index] + sizes[index])))


class Results:
    """The parts of one moment.

    Args:
        record: the memory they are made of.
        before: those of an earlier moment.
        changed: addresses of the words that are not as they were then.
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
        """Return what ``make`` makes of memory and the key, and of nothing else."""
        known = self._known.get(key)
        if known is None or known.has_any(self._changed):
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
