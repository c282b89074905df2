"""Translation by a table that L1 wrote, one address at a time.

The rules are those of ``kvmppc_mmu_walk_radix_tree`` in
arch/powerpc/kvm/book3s_64_mmu_radix.c, in the order in which it applies them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator

from inspector import pte
from inspector.model.vm import Leaf

__all__ = ["NoTranslation", "leaves", "translate"]

Read = Callable[[int], int | None]
"""Gives the 64-bit entry at an L1 address, in host order; None outside L1's memory."""

_TOP = len(pte.SUPPORTED_BITS) - 1


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
        if bits not in supported or table & (8 << bits) - 1:
            return NoTranslation.UNSUPPORTED
        offset -= bits
        entry = read(table + 8 * (address >> offset & (1 << bits) - 1))
        if entry is None:
            return NoTranslation.NOT_READABLE
        if not entry & pte.VALID:
            return NoTranslation.NOT_MAPPED
        if entry & pte.LEAF:
            return _leaf(entry, address, offset, depth)
        table, bits = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
    return NoTranslation.UNSUPPORTED


def leaves(read: Read, dword: int) -> Iterator[Leaf]:
    """Yield every leaf of L1's table that translates something."""
    root = pte.partition_root(dword)
    if root is not None:
        yield from _below(read, root.table, root.bits, 0, pte.TREE_BITS, 0)


def _leaf(entry: int, address: int, offset: int, depth: int) -> Leaf | NoTranslation:
    # a leaf in the first table would map 512 GiB
    if depth == 0 or entry & pte.RPN_MASK & (1 << offset) - 1:
        return NoTranslation.UNSUPPORTED
    return Leaf(address >> offset << offset, entry, offset)


def _below(read: Read, table: int, bits: int, base: int, offset: int, depth: int) -> Iterator[Leaf]:
    if bits not in pte.SUPPORTED_BITS[depth] or table & (8 << bits) - 1:
        return
    offset -= bits
    for index in range(1 << bits):
        entry = read(table + 8 * index)
        if not entry or not entry & pte.VALID:
            continue
        address = base + (index << offset)
        if entry & pte.LEAF:
            leaf = _leaf(entry, address, offset, depth)
            if isinstance(leaf, Leaf):
                yield leaf
        elif depth < _TOP:
            below = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
            yield from _below(read, *below, address, offset, depth + 1)
