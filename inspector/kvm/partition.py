"""L0's partition table: which table the hardware walks for an LPID.

A powernv host has it at ``partition_tb`` (arch/powerpc/mm/book3s64/pgtable.c);
a pseries host keeps its own in kvm-hv, at ``pseries_partition_tb``, and
registers it with its hypervisor.  Entries are two big-endian dwords.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from inspector import pte
from inspector.errors import BadData, MemoryNotReadable, TargetNotSupported
from inspector.kernel.host import kvm_modules
from inspector.kvm.snapshot import PartitionEntry
from inspector.memory.contents import SHRUNK
from inspector.memory.interface import CUT_OFF, Records, why_missing
from inspector.memory.numbers import addresses, integer
from inspector.structures.modules import module_values
from inspector.structures.space import KernelSpace

__all__ = ["PartitionTable", "partition_entry", "partition_table", "read_partition_table"]

ENTRY_SIZE = 16
DWORD = 8
PAGE = 1 << 12
NOT_NAMED = "the layout of this kernel was taken without partition_tb"
TABLE_SIZE = ENTRY_SIZE * pte.PARTITION_ENTRIES


def partition_table(kernel: KernelSpace) -> int:
    """Return the kernel address of the partition table.

    Raises:
        BadData, MemoryNotReadable: a word that leads to it is damaged or missing.
        TargetNotSupported: nothing names it, or the host has none.
    """
    symbol = kernel.profile.symbols.get("partition_tb")
    if symbol is None:
        raise TargetNotSupported(NOT_NAMED)
    table = kernel.pointer(symbol)
    if table:
        return _place(kernel, symbol, table)
    symbol = kernel.profile.symbols.get("pseries_partition_tb")
    if symbol is None:
        module = kvm_modules(kernel)["kvm_hv"]
        values = module_values(kernel, module, "pseries_partition_tb")
        if len(values) != 1:
            # The profile of a kernel that does not name its modules' data has an anchor instead.
            error = TargetNotSupported if kernel.profile.anchors else BadData
            raise error("it is not where partition_tb points, and kvm-hv names no other")
        symbol = values[0]
    table = kernel.pointer(symbol)
    if not table:
        raise BadData("partition_tb and pseries_partition_tb are zero")
    return _place(kernel, symbol, table)


def _place(kernel: KernelSpace, symbol: int, table: int) -> int:
    """Return the address of a table if a partition table can lie there.

    Raises:
        BadData: it cannot.
    """
    if not kernel.can_hold(table, TABLE_SIZE, PAGE):
        raise BadData(
            f"the pointer at {symbol:#x} says that it is at {table:#x}, where no partition table "
            "can be"
        )
    return table


def partition_entry(kernel: KernelSpace, table: int, lpid: int) -> PartitionEntry:
    """Read an LPID's entry.

    Older captures have only dword 0.

    Raises:
        BadData: the table has no entry for that LPID.
        MemoryNotReadable: dword 0 is not readable.
    """
    if lpid >= pte.PARTITION_ENTRIES:
        raise BadData(f"the partition table at {table:#x} has no entry for LPID {lpid}")
    where = kernel.physical(table + ENTRY_SIZE * lpid)
    first = integer(kernel.memory.read(where, DWORD), pte.BYTE_ORDER)
    second = None
    with contextlib.suppress(MemoryNotReadable):
        second = integer(kernel.memory.read(where + DWORD, DWORD), pte.BYTE_ORDER)
    return PartitionEntry(where, first, second)


class PartitionTable(NamedTuple):
    """The entries of a partition table that are not zero, by LPID.

    ``where`` is the physical address of the table, ``read`` the number of
    entries whose dword 0 could be read, and ``first`` the entry of LPID 0,
    None if its dword 0 could not be read.  ``lost`` says why entries could
    not be read that the target's file once held, and is empty if there are none.
    """

    where: int
    read: int
    entries: dict[int, PartitionEntry]
    lost: str = ""
    first: PartitionEntry | None = None


def read_partition_table(kernel: KernelSpace, table: int) -> PartitionTable:
    """Read all entries of the partition table, as far as they are there.

    Raises:
        MemoryNotReadable: the kernel does not map the table.
    """
    where = kernel.physical(table)
    per_page = PAGE // DWORD
    pages = addresses(range(where, where + TABLE_SIZE, PAGE))
    data, present = kernel.memory.read_many(pages, PAGE)
    # One row per page of the table, one column per dword; below, one row per entry.
    words = Records(data, present).words(pte.BYTE_ORDER)
    known = np.repeat(present, per_page).reshape(words.shape)
    lost = ""
    for row in np.flatnonzero(~present):
        why = why_missing(kernel.memory, int(pages[row]), PAGE)
        lost = why if why in (CUT_OFF, SHRUNK) else lost
        # A capture made by an earlier version has only some entries of a page.
        places = addresses(range(int(pages[row]), int(pages[row]) + PAGE, DWORD))
        single = kernel.memory.read_many(places, DWORD)
        words[row] = single.words(pte.BYTE_ORDER).reshape(-1)
        known[row] = single.present
    first, second = words.reshape(-1, 2).T
    known_first, known_second = known.reshape(-1, 2).T

    def entry(lpid: int) -> PartitionEntry:
        dword = int(second[lpid]) if known_second[lpid] else None
        return PartitionEntry(where + ENTRY_SIZE * lpid, int(first[lpid]), dword)

    used = known_first & ((first != 0) | (known_second & (second != 0)))
    entries = {int(lpid): entry(int(lpid)) for lpid in np.flatnonzero(used)}
    own = entry(0) if known_first[0] else None
    return PartitionTable(where, int(np.count_nonzero(known_first)), entries, lost, own)
