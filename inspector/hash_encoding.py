"""The bits of a hash guest's reverse-map word.

A guest with a hashed page table (HPT) uses the same array as a radix guest,
``kvm_memory_slot.arch.rmap[]``, with words of another kind
(arch/powerpc/include/asm/kvm_host.h, "KVMPPC_RMAP_*")::

    63      56 55     44  43   42 41  40  39  38     33  32  31            0
    +---------+---------+----+------+---+---+---------+----+----------------+
    |  0x01   |  zero   |Lock| zero | R | C |  zero   | P  |   HPT index    |
    +---------+---------+----+------+---+---+---------+----+----------------+

``P`` says that entries of the HPT map the page, and the index says which of
them is the first.  The others form a ring with it: L0 keeps a ``struct
revmap_entry`` for each entry of the HPT, in ``kvm->arch.hpt.rev[]``, and its
``forw`` and ``back`` are the indices of the neighbours.  The ``R`` and ``C`` of
entries that no longer exist are kept, with the type in the highest byte, so a
word need not lead anywhere.  A word is zero until an entry first maps the page.

This module needs the standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHANGED",
    "HPTE_SHIFT",
    "INDEX_MASK",
    "LOCKED",
    "MAX_ORDER",
    "MIN_ORDER",
    "PRESENT",
    "REFERENCED",
    "RESERVED_MASK",
    "TYPE_HPT",
    "TYPE_MASK",
    "HashWord",
    "decode",
    "encode",
    "problems",
]

TYPE_MASK = 0xFF << 56
TYPE_HPT = 0x01 << 56
LOCKED = 1 << 43
REFERENCED = 1 << 40
CHANGED = 1 << 39
PRESENT = 1 << 32
INDEX_MASK = (1 << 32) - 1
RESERVED_MASK = ~(TYPE_MASK | LOCKED | REFERENCED | CHANGED | PRESENT | INDEX_MASK) & (
    (1 << 64) - 1
)

HPTE_SHIFT = 4
"""log2 of the bytes of an HPT entry; the HPT has ``1 << kvm->arch.hpt.order`` bytes."""

MIN_ORDER = 18
MAX_ORDER = 46
"""The least and the largest order of an HPT (``PPC_MIN_HPT_ORDER``, ``PPC_MAX_HPT_ORDER``)."""


@dataclass(frozen=True)
class HashWord:
    """A decoded word; ``index`` is None if no entry of the HPT maps the page."""

    index: int | None
    referenced: bool = False
    changed: bool = False
    locked: bool = False


def encode(word: HashWord) -> int:
    """Return the word, as the kernel writes it once an entry has mapped the page.

    Raises:
        ValueError: the index does not fit.
    """
    if word.index is not None and not 0 <= word.index <= INDEX_MASK:
        raise ValueError(f"HPT index {word.index} does not fit in 32 bits")
    return (
        TYPE_HPT
        | (0 if word.index is None else PRESENT | word.index)
        | (REFERENCED if word.referenced else 0)
        | (CHANGED if word.changed else 0)
        | (LOCKED if word.locked else 0)
    )


def decode(word: int) -> HashWord:
    """Decode a word; like the kernel, this ignores all other bits."""
    return HashWord(
        word & INDEX_MASK if word & PRESENT else None,
        bool(word & REFERENCED),
        bool(word & CHANGED),
        bool(word & LOCKED),
    )


def problems(word: int) -> list[str]:
    """Say what is wrong with the bits of a word, if anything."""
    found = []
    if word & RESERVED_MASK:
        found.append(f"reserved bits {word & RESERVED_MASK:#x} are set")
    kind = word & TYPE_MASK
    # The kernel takes the lock before it first writes the type, so the lock may be set alone.
    if kind != TYPE_HPT and word & ~LOCKED:
        found.append(f"the type is {kind >> 56:#04x}, not that of a hash guest's word")
    if word & INDEX_MASK and not word & PRESENT:
        found.append(f"it has the HPT index {word & INDEX_MASK:#x} but is not present")
    return found
