"""L1's side: a partition table and radix tables that L1 writes into its own memory.

They have a form that KVM-HV accepts (``kvmppc_mmu_walk_radix_tree``): a tree of
52 bits with index widths 13, 9, 9 and 9; in the last table it is 5 for pages of
64 KiB.
"""

from __future__ import annotations

from inspector import pte
from inspector.model import guests, operations
from inspector.model.state import State

__all__ = ["L1Tables"]

WIDEST = 12 - 8
"""Size field of a partition table of 4096 entries, the largest that KVM accepts."""


class L1Tables:
    """The tables of one L1, in memory that is taken from the L1 address ``at`` upwards."""

    def __init__(self, vm: State, at: int) -> None:
        self._vm = vm
        self._free = at
        self._roots: dict[int, int] = {}
        self._table = self._take(16 << (WIDEST + 8))

    def register(self) -> guests.HcallResult:
        """Tell L0 where the partition table is."""
        return guests.h_set_partition_table(self._vm, self._table | WIDEST)

    def create(self, lpid: int) -> None:
        """Give a guest an empty tree."""
        root = self._roots[lpid] = self._take(8 << pte.PGD_BITS)
        self._store(self._table + 16 * lpid, pte.partition_dword(pte.Root(root, pte.PGD_BITS)))

    def clear(self, lpid: int) -> None:
        """Take a guest's tree away."""
        self._roots.pop(lpid, None)
        self._store(self._table + 16 * lpid, 0)

    def map(self, lpid: int, l2: int, l1: int, shift: int, flags: int) -> None:
        """Set a leaf of size ``2^shift``; ``flags`` are its permissions and R and C."""
        self._store(self._place(lpid, l2, shift), pte.VALID | pte.LEAF | l1 | flags)

    def unmap(self, lpid: int, l2: int, shift: int) -> None:
        """Clear a leaf."""
        self._store(self._place(lpid, l2, shift), 0)

    def _take(self, size: int) -> int:
        """Return the address of a new table; a table is aligned to its size."""
        start = -(-self._free // size) * size
        self._free = start + size
        return start

    def _store(self, address: int, value: int) -> None:
        operations.l1_store(self._vm, address, value)

    def _place(self, lpid: int, l2: int, shift: int) -> int:
        """Return the address of an entry, and create the tables that lead to it."""
        widths = [*(bits[0] for bits in pte.SUPPORTED_BITS[:-1]), 5 if shift == 16 else 9]
        table, offset = self._roots[lpid], pte.TREE_BITS
        for depth, bits in enumerate(widths):
            offset -= bits
            place = table + 8 * ((l2 >> offset) & ((1 << bits) - 1))
            if offset == shift:
                return place
            entry = self._vm.read_l1(place)
            if entry is None or not entry & pte.VALID or entry & pte.LEAF:
                below = widths[depth + 1]
                entry = pte.VALID | self._take(8 << below) | below
                self._store(place, entry)
            table = entry & pte.NEXT_TABLE_MASK
        raise ValueError(f"no table of L1 has leaves of 2^{shift} bytes")
