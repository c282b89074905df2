"""L0's partition table: which table the hardware walks for an LPID.

A powernv host has it at ``partition_tb`` (arch/powerpc/mm/book3s64/pgtable.c);
a pseries host keeps its own in kvm-hv, at ``pseries_partition_tb``, and
registers it with its hypervisor.  Entries are two big-endian dwords.
"""

from __future__ import annotations

from inspector import pte
from inspector.errors import BadData, TargetNotSupported
from inspector.kernel.host import kvm_modules
from inspector.kvm.snapshot import PartitionEntry
from inspector.memory.base import integer
from inspector.structures.modules import module_values
from inspector.structures.space import KernelSpace

__all__ = ["partition_entry", "partition_table"]

ENTRY_SIZE = 16
DWORD = 8


def partition_table(kernel: KernelSpace) -> int:
    """Return the kernel address of the partition table.

    Raises:
        BadData, MemoryNotReadable: what leads to it is damaged or missing.
        TargetNotSupported: nothing names it, or the host has none.
    """
    symbol = kernel.profile.symbols.get("partition_tb")
    if symbol is None:
        raise TargetNotSupported("the layout of this kernel was taken without partition_tb")
    table = kernel.pointer(symbol)
    if table:
        return table
    symbol = kernel.profile.symbols.get("pseries_partition_tb")
    if symbol is None:
        module = kvm_modules(kernel)["kvm_hv"]
        values = module_values(kernel, module, "pseries_partition_tb")
        if len(values) != 1:
            raise TargetNotSupported(
                "it is not where partition_tb points, and kvm-hv names no other"
            )
        symbol = values[0]
    table = kernel.pointer(symbol)
    if not table:
        raise TargetNotSupported("partition_tb and pseries_partition_tb are zero")
    return table


def partition_entry(kernel: KernelSpace, table: int, lpid: int) -> PartitionEntry:
    """Read dword 0 of an LPID's entry.

    Raises:
        BadData: the table has no entry for that LPID.
        MemoryNotReadable: the entry is not readable.
    """
    if lpid >= pte.PARTITION_ENTRIES:
        raise BadData(f"the partition table at {table:#x} has no entry for LPID {lpid}")
    where = kernel.physical(table + ENTRY_SIZE * lpid)
    return PartitionEntry(where, integer(kernel.memory.read(where, DWORD), pte.BYTE_ORDER))
