"""The bits of a nested reverse-map word, defined in one place.

KVM-HV keeps one 64-bit word per L1 page in ``kvm_memory_slot.arch.rmap[]``.
For a radix guest, that word and the words of the list it may lead to are
(arch/powerpc/include/asm/kvm_book3s_64.h, "RMAP_NESTED_*")::

    63          52 51                                    12 11      1  0
    +-------------+----------------------------------------+---------+--+
    |  L1 LPID    |  L2 guest real page (bits 51:12)       | zero    |S |
    +-------------+----------------------------------------+---------+--+

``S`` is set in a word that is not in a list node: in a slot that holds one
entry, and in the ``next`` pointer of the last list node, where it ends the
list.  The word inside a list node (``struct rmap_nested.rmap``) has it clear.

A slot therefore has three forms: ``0`` (empty), a word with ``S`` set (one
entry), or the address of a ``struct rmap_nested`` (a list, newest entry
first, the oldest in the last ``next``).

Functions that take a word use only arithmetic, so they accept a Python
integer as well as an unsigned 64-bit NumPy array.  Words are in host order:
the caller has already applied the byte order of the kernel.

This module needs the standard library only; GDB's Python imports it too.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "GPA_MASK",
    "IDENTITY_MASK",
    "LPID_MASK",
    "LPID_SHIFT",
    "MAX_LPID",
    "NODE_ALIGNMENT",
    "RESERVED_MASK",
    "SINGLE_ENTRY",
    "Entry",
    "SlotForm",
    "decode",
    "encode",
    "form_of",
    "gpa_of",
    "identity",
    "is_single",
    "lpid_of",
    "problems",
]

LPID_SHIFT = 52
GPA_SHIFT = 12
LPID_MASK = 0xFFF0_0000_0000_0000
GPA_MASK = 0x000F_FFFF_FFFF_F000
SINGLE_ENTRY = 0x1

IDENTITY_MASK = LPID_MASK | GPA_MASK
"""The bits the kernel compares (``kvmhv_n_rmap_is_equal``)."""

RESERVED_MASK = ~(IDENTITY_MASK | SINGLE_ENTRY) & ((1 << 64) - 1)
"""Bits 11 to 1, which the kernel leaves zero."""
MAX_LPID = LPID_MASK >> LPID_SHIFT

NODE_ALIGNMENT = 8
"""Bytes. A ``struct rmap_nested`` comes from kmalloc, which aligns its objects at least so."""

Word = TypeVar("Word", int, "NDArray[np.uint64]")


class Entry(NamedTuple):
    """One reverse-map entry: the L1 LPID of an L2 guest and an L2 guest real address."""

    lpid: int
    gpa: int


class SlotForm(enum.Enum):
    """What the word of a slot, or the ``next`` of a node, leads to."""

    EMPTY = "empty"
    SINGLE = "single"
    LIST = "list"


def encode(lpid: int, gpa: int, *, single: bool = False) -> int:
    """Return the word for an L2 guest real address of the guest with this L1 LPID.

    Raises:
        ValueError: the LPID or the address does not fit, or the address is
            not aligned to 4 KiB.
    """
    if not 0 <= lpid <= MAX_LPID:
        raise ValueError(f"LPID {lpid} does not fit in 12 bits")
    if gpa & ~GPA_MASK:
        raise ValueError(f"L2 address {gpa:#x} is not a 4 KiB aligned address below 2^52")
    return (lpid << LPID_SHIFT) | gpa | (SINGLE_ENTRY if single else 0)


def decode(word: int) -> Entry:
    """Return the entry that a word encodes; like the kernel, this ignores reserved bits."""
    return Entry(lpid_of(word), gpa_of(word))


def lpid_of(word: Word) -> Word:
    """Return the L1 LPID of a word or of an array of words."""
    bits: Any = word
    result: Word = (bits & LPID_MASK) >> LPID_SHIFT
    return result


def gpa_of(word: Word) -> Word:
    """Return the L2 guest real address, in bytes, of a word or of an array of words."""
    bits: Any = word
    result: Word = bits & GPA_MASK
    return result


def identity(word: Word) -> Word:
    """Return the bits that make two words the same entry."""
    bits: Any = word
    result: Word = bits & IDENTITY_MASK
    return result


def is_single(word: Word) -> Word:
    """Return non-zero where the word carries the single-entry bit."""
    bits: Any = word
    result: Word = bits & SINGLE_ENTRY
    return result


def form_of(word: int) -> SlotForm:
    """Classify the word of a slot, or the ``next`` of a list node."""
    if not word:
        return SlotForm.EMPTY
    return SlotForm.SINGLE if is_single(word) else SlotForm.LIST


def problems(word: int, *, in_node: bool, page_shift: int = GPA_SHIFT) -> list[str]:
    """Say what is wrong with the bits of a word, if anything.

    Args:
        word: the word of an entry (not a pointer).
        in_node: the word is stored in a list node rather than in a slot or a
            last ``next``.
        page_shift: log2 of L0's page size, the smallest that a shadow leaf maps.
    """
    found = []
    if word & RESERVED_MASK:
        found.append(f"reserved bits {word & RESERVED_MASK:#x} are set")
    if gpa_of(word) & ((1 << page_shift) - 1):
        found.append(f"the L2 address is not aligned to a page of {1 << page_shift >> 10}K")
    if in_node and is_single(word):
        found.append("the single-entry bit is set inside a list node")
    if not in_node and not is_single(word):
        found.append("the single-entry bit is clear outside a list node")
    return found
