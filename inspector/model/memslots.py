"""Memslots, and the leaves that lie in them.

The kernel looks a gfn up in one memslot (``gfn_to_memslot``), and keeps
everything about its page there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from inspector.model.vm import Leaf

__all__ = ["Range", "holder"]


class Range(Protocol):
    """The range of a memslot, in pages of the host."""

    @property
    def base_gfn(self) -> int: ...
    @property
    def npages(self) -> int: ...


def holder(memslots: Iterable[Range], leaf: Leaf, page_shift: int) -> Range | None:
    """Return the memslot that holds all of a leaf of L0's table, None if there is none."""
    for slot in memslots:
        begin = slot.base_gfn << page_shift
        end = (slot.base_gfn + slot.npages) << page_shift
        if begin <= leaf.address and leaf.address + leaf.size <= end:
            return slot
    return None
