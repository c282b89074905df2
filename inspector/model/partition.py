"""How L0's partition table names the radix tree that a guest runs on."""

from __future__ import annotations

from inspector import pte

__all__ = ["MAX_SIZE_FIELD", "PTCR_SIZE_MASK", "leads_to"]

PTCR_SIZE_MASK = 0x1F
MAX_SIZE_FIELD = 4
"""The largest size field that H_SET_PARTITION_TABLE accepts: log2 of the entries, less 8."""


def leads_to(dword: int, table: int) -> bool:
    """Say whether dword 0 of an entry leads to the radix tree with its root at ``table``.

    ``kvmhv_set_nested_ptbl`` and ``kvmppc_setup_partition_table`` write such
    an entry: host radix, a tree of 52 bits, physical address, 2^13 entries.
    """
    return bool(dword & pte.HOST_RADIX) and pte.partition_root(dword) == pte.Root(
        table, pte.PGD_BITS
    )
