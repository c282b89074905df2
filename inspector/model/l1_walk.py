"""Translation by a table that L1 wrote, one address at a time.

The rules are those of ``kvmppc_mmu_walk_radix_tree`` in
arch/powerpc/kvm/book3s_64_mmu_radix.c, in the order in which it applies them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import NamedTuple

from inspector import pte
from inspector.model.vm import Leaf

__all__ = ["L1Table", "NoTranslation", "translate"]

Read = Callable[[int], int | None]
"""Returns the 64-bit entry at an L1 address, in host order; None outside L1's memory."""


class NoTranslation(enum.Enum):
    """Why an address has no translation, and the error number KVM uses for it."""

    UNSUPPORTED = "EINVAL: a form of table that KVM does not walk"
    NOT_MAPPED = "ENOENT: L1's table maps nothing there"
    NOT_READABLE = "EFAULT: a part of L1's table is outside of its memory"


def translate(read: Read, dword: int, address: int) -> Leaf | NoTranslation:
    """Return the leaf that translates an L2 address, its frame an L1 address.

    ``dword`` is dword 0 of L1's partition-table entry.
    """
    root = pte.partition_root(dword)
    if root is None:
        return NoTranslation.UNSUPPORTED
    table, bits = root
    offset = pte.TREE_BITS
    for depth, supported in enumerate(pte.SUPPORTED_BITS):
        if bits not in supported or table & ((8 << bits) - 1):
            return NoTranslation.UNSUPPORTED
        offset -= bits
        entry = read(table + 8 * ((address >> offset) & ((1 << bits) - 1)))
        if entry is None:
            return NoTranslation.NOT_READABLE
        if not entry & pte.VALID:
            return NoTranslation.NOT_MAPPED
        if entry & pte.LEAF:
            return _leaf(entry, address, offset, depth)
        table, bits = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
    return NoTranslation.UNSUPPORTED


class L1Table(NamedTuple):
    """A table of L1, searched like one of L0's tables."""

    read: Read
    dword: int

    def at(self, address: int) -> Leaf | None:
        """Return the leaf that translates an L2 address, None if KVM finds none."""
        leaf = translate(self.read, self.dword, address)
        return leaf if isinstance(leaf, Leaf) else None

    def onto(self, frame: int) -> Sequence[Leaf]:
        """Not needed: the rmaps lead from a page of L1 to its leaves."""
        raise NotImplementedError


def _leaf(entry: int, address: int, offset: int, depth: int) -> Leaf | NoTranslation:
    # A leaf in the first table would map 512 GiB, which KVM does not support.
    if depth == 0 or entry & pte.RPN_MASK & ((1 << offset) - 1):
        return NoTranslation.UNSUPPORTED
    return Leaf(address >> offset << offset, entry, offset)
