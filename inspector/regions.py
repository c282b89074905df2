"""The regions of kernel addresses that matter here, defined in one place.

With the radix MMU (arch/powerpc/include/asm/book3s/64/radix.h) physical
memory is mapped linearly from ``LINEAR_MAP`` on; vmalloc, I/O and vmemmap
follow from 0xc008... on.  Standard library only.
"""

from __future__ import annotations

__all__ = [
    "LINEAR_MAP",
    "LINEAR_SIZE",
    "OFFSET_MASK",
    "VMALLOC",
    "VMALLOC_END",
    "linear_to_physical",
]

LINEAR_MAP = 0xC000_0000_0000_0000
LINEAR_SIZE = 0x0008_0000_0000_0000
OFFSET_MASK = 0x0FFF_FFFF_FFFF_FFFF
VMALLOC = 0xC008_0000_0000_0000
VMALLOC_END = 0xC00A_0000_0000_0000


def linear_to_physical(address: int) -> int:
    """Return the physical address of an address in the linear map (``__pa``)."""
    return address & OFFSET_MASK
