"""The bits of a radix page-table entry, defined in one place.

Power ISA 3.0B, Book III, 5.7.10 (radix tree translation), and
arch/powerpc/include/asm/book3s/64/radix.h.  Entries are big-endian in memory
on every kernel; the functions here take values in host byte order.

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
"""Bits that KVM copies from L0's leaf and ignores in L1's: the cache attribute and PRIV."""

HOST_RADIX = 1 << 63
"""Set in dword 0 of a partition-table entry that leads to a radix tree."""
GUEST_RADIX = 1 << 63
"""Set in dword 1 of the entry of a guest whose processes use radix (PATB_GR)."""

PARTITION_ENTRIES = 1 << 12
"""Entries of the host's partition table, and the most that L1 may have in its own."""

TREE_BITS = 52
"""Address bits that a tree translates; the only size that KVM supports."""

PGD_BITS = 13
SUPPORTED_BITS = ((PGD_BITS,), (9,), (9,), (9, 5))
"""Index widths that KVM accepts at each level, the root first (p9_supported_radix_bits)."""

RESERVED = 0x1E00_0000_0000_0040
"""Bits of a leaf that are reserved: 60 to 57, and 6 (Power ISA 3.0B Book III 5.7.10.2)."""

SOFTWARE = 0x2000_0000_0000_0E00
"""Bits of a leaf that the hardware ignores; KVM copies them from the process's entry."""

PRIVILEGED = 0x008
CACHE_INHIBITED = 0x020
"""Set in a leaf that maps a device; KVM copies it from the process's entry."""

UPPER_RESERVED = 0x3000_0000_0000_00E0
"""Reserved bits of an entry that leads to a table and is not a leaf."""

# The size of a tree, less 31, is split: its upper two bits are in RTS1, the lower three in RTS2.
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
    the kernel assumes these widths, and never looks at the width in an entry.
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
    """Return the permissions of an entry as text: ``RWX``, with ``-`` for each that is missing."""
    return _letters(pte, _PERMISSIONS)


def recorded(pte: int) -> str:
    """Return the R and C bits of an entry as text: ``rc``, with ``-`` for each that is clear."""
    return _letters(pte, _RECORDED)


def level_name(shift: int) -> str:
    """Return Linux's name for the level of a tree that has leaves of size ``2^shift``."""
    return "PUD" if shift >= 30 else "PMD" if shift >= 21 else "PTE"


def describe(pte: int, shift: int) -> str:
    """Return the frame, the size and the permissions of a leaf as text."""
    flags = permissions(pte) + recorded(pte)
    return f"{frame_of(pte, shift):#x} {size_name(shift)} {flags}"


def size_name(shift: int) -> str:
    """Return a page size as people write it: ``4K``, ``64K``, ``2M``, ``1G``."""
    for unit, at in (("G", 30), ("M", 20), ("K", 10)):
        if shift >= at:
            return f"{1 << (shift - at)}{unit}"
    return f"{1 << shift}"
