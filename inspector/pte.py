"""The bits of a radix page-table entry, written down once.

Power ISA 3.0B, Book III, 5.7.10 (radix tree translation), and
arch/powerpc/include/asm/book3s/64/radix.h.  Entries are big-endian in memory
on every kernel; functions here take host-order values.

This module needs the standard library only.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "ATTRIBUTES",
    "BYTE_ORDER",
    "CACHE_INHIBITED",
    "CHANGED",
    "EXEC",
    "GUEST_RADIX",
    "HOST_RADIX",
    "LEAF",
    "NEXT_BITS_MASK",
    "NEXT_TABLE_MASK",
    "PARTITION_ENTRIES",
    "PERMISSIONS",
    "PGD_BITS",
    "PRIVILEGED",
    "READ",
    "RECORDED",
    "REFERENCED",
    "RESERVED",
    "RPN_MASK",
    "SOFTWARE",
    "SUPPORTED_BITS",
    "TREE_BITS",
    "UPPER_RESERVED",
    "VALID",
    "WRITE",
    "Root",
    "describe",
    "frame_of",
    "kernel_bits",
    "level_name",
    "partition_dword",
    "partition_root",
    "permissions",
    "recorded",
]

BYTE_ORDER = ">"

VALID = 1 << 63
LEAF = 1 << 62
RPN_MASK = 0x01FF_FFFF_FFFF_F000
NEXT_TABLE_MASK = 0x0FFF_FFFF_FFFF_FF00
NEXT_BITS_MASK = 0x1F
REFERENCED = 0x100
CHANGED = 0x080
READ = 0x004
WRITE = 0x002
EXEC = 0x001
PERMISSIONS = READ | WRITE | EXEC
RECORDED = REFERENCED | CHANGED
ATTRIBUTES = 0x038
"""Bits that KVM copies from L0's leaf and never looks at in L1's: the cache attribute, PRIV."""

HOST_RADIX = 1 << 63
"""Set in dword 0 of a partition-table entry that leads to a radix tree."""
GUEST_RADIX = 1 << 63
"""Set in dword 1 of one whose processes use radix (PATB_GR)."""

PARTITION_ENTRIES = 1 << 12
"""Of the host's partition table, and the most that L1 may have in its own."""

TREE_BITS = 52
"""Address bits a tree translates; the only size KVM supports."""

PGD_BITS = 13
SUPPORTED_BITS = ((PGD_BITS,), (9,), (9,), (9, 5))
"""Index widths KVM accepts at each level, the root first (p9_supported_radix_bits)."""

RESERVED = 0x1E00_0000_0000_0040
"""Bits of a leaf that are reserved: 60 to 57, and 6 (Power ISA 3.0B Book III 5.7.10.2)."""

SOFTWARE = 0x2000_0000_0000_0E00
"""Bits of a leaf that the hardware ignores; KVM copies them from the process's entry."""

PRIVILEGED = 0x008
CACHE_INHIBITED = 0x020
"""Set in a leaf that maps a device; KVM copies it from the process's entry."""

UPPER_RESERVED = 0x3000_0000_0000_00E0
"""Bits of an entry that leads to a table, and is no leaf, which are reserved."""

_RTS1_SHIFT, _RTS1_MASK = 61, 0x3
_RTS2_SHIFT, _RTS2_MASK = 5, 0x7
_RTS_BASE = 31


class Root(NamedTuple):
    """Where a tree begins: address of its first table and log2 of its entries."""

    table: int
    bits: int


def kernel_bits(page_shift: int) -> tuple[tuple[int, ...], ...]:
    """Return the index width that a kernel with pages of ``2^page_shift`` uses at each level.

    RADIX_PGD_INDEX_SIZE and its like in arch/powerpc/include/asm/book3s/64:
    the kernel takes them for granted, and never looks at the width in an entry.
    """
    return *SUPPORTED_BITS[:-1], (5 if page_shift == 16 else 9,)


def frame_of(pte: int, shift: int) -> int:
    """Return the physical address, in bytes, of the page of size ``2^shift`` a leaf maps."""
    return pte & RPN_MASK & ~((1 << shift) - 1)


def partition_root(dword: int) -> Root | None:
    """Decode dword 0 of a partition-table entry; None if KVM would refuse it.

    The rules are those of ``kvmppc_mmu_walk_radix_tree``: a tree of 52 bits
    whose first table has 2^13 entries and is aligned to its size.
    """
    rts = (((dword >> _RTS1_SHIFT) & _RTS1_MASK) << 3) | ((dword >> _RTS2_SHIFT) & _RTS2_MASK)
    bits = dword & NEXT_BITS_MASK
    table = dword & NEXT_TABLE_MASK
    if rts + _RTS_BASE != TREE_BITS or bits != PGD_BITS or table & ((8 << bits) - 1):
        return None
    return Root(table, bits)


def partition_dword(root: Root) -> int:
    """Return dword 0 of the partition-table entry for a tree (``kvmhv_set_nested_ptbl``)."""
    rts = TREE_BITS - _RTS_BASE
    size = (((rts >> 3) & _RTS1_MASK) << _RTS1_SHIFT) | ((rts & _RTS2_MASK) << _RTS2_SHIFT)
    return HOST_RADIX | size | root.table | root.bits


_PERMISSIONS = (("R", READ), ("W", WRITE), ("X", EXEC))
_RECORDED = (("r", REFERENCED), ("c", CHANGED))


def _letters(pte: int, bits: tuple[tuple[str, int], ...]) -> str:
    return "".join(letter if pte & bit else "-" for letter, bit in bits)


def permissions(pte: int) -> str:
    """Return what an entry permits, for people: ``RWX``, with ``-`` for what it does not."""
    return _letters(pte, _PERMISSIONS)


def recorded(pte: int) -> str:
    """Return the R and C bits of an entry for people: ``rc``, with ``-`` for one that is clear."""
    return _letters(pte, _RECORDED)


def level_name(shift: int) -> str:
    """Return the level of a tree at which leaves of size ``2^shift`` stand, as Linux names it."""
    return "PUD" if shift >= 30 else "PMD" if shift >= 21 else "PTE"


def describe(pte: int, shift: int) -> str:
    """Return frame, size and permissions of a leaf for people."""
    flags = permissions(pte) + recorded(pte)
    return f"{frame_of(pte, shift):#x} {size_name(shift)} {flags}"


def size_name(shift: int) -> str:
    """Return a page size as people write it: ``4K``, ``64K``, ``2M``, ``1G``."""
    for unit, at in (("G", 30), ("M", 20), ("K", 10)):
        if shift >= at:
            return f"{1 << (shift - at)}{unit}"
    return f"{1 << shift}"
