"""State that belongs to no VM: the kernel's image, the machine's memory, the partition table.

The partition table is a second witness of which guests there are: an LPID
that has an entry there belongs to a VM or to a nested guest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

from inspector import pte
from inspector.errors import MemoryNotReadable
from inspector.image.profile import Profile
from inspector.kvm.partition import PartitionTable, read_partition_table
from inspector.kvm.snapshot import HostState, PartitionEntry, Region, Unowned, Vm
from inspector.memory.results import Making
from inspector.regions import LINEAR_MAP, LINEAR_SIZE, linear_to_physical
from inspector.structures.radix import LeafTable, collect_leaves
from inspector.structures.space import KernelSpace

__all__ = ["read_host_state"]

HOST_LPID = 0
SIZED = ("kvm", "kvm_memory_slot", "kvm_nested_guest", "rmap_nested")
VECTORS = "the interrupt vectors"
TEXT, DATA = "the kernel's text and read-only data", "the kernel's data"
IN_VMCOREINFO = re.compile(r"^SYMBOL\((\w+)\)=([0-9a-f]+)$", re.MULTILINE)


def read_host_state(
    kernel: KernelSpace, table: int | None, why: str, vms: Sequence[Vm], making: Making
) -> HostState:
    """Read the state of the host itself.

    Args:
        kernel: the host's kernel.
        table: the kernel address of the partition table, None if it is not known.
        why: the reason why it is not known.
        vms: the VMs that were found; their LPIDs, and those of their nested guests, have owners.
        making: makes tables, or returns them unchanged from an earlier moment.
    """
    profile = kernel.profile
    found: PartitionTable | None = None
    if table is not None:
        try:
            found = making(("partition table", table), partial(read_partition_table, kernel, table))
        except MemoryNotReadable as error:
            why = str(error)
    if found is not None and found.read < pte.PARTITION_ENTRIES:
        why = f"{pte.PARTITION_ENTRIES - found.read} of its entries are not in the target"
    zero = profile.symbols.get("empty_zero_page")
    return HostState(
        ram=kernel.ram,
        regions=tuple(_regions(profile)),
        zero_page=None if zero is None else linear_to_physical(zero),
        root=linear_to_physical(profile.symbols["swapper_pg_dir"]),
        sizes={name: profile.struct(name).size for name in SIZED},
        partition=None if found is None else found.where,
        entries=0 if found is None else found.read,
        used=0 if found is None else sum(bool(e.dword) for e in found.entries.values()),
        unowned=() if found is None else tuple(_unowned(kernel, found, vms, making)),
        first_entry=None if found is None else _own_entry(kernel, found),
        gap=why,
        lost="" if found is None else found.lost,
    )


def _own_entry(kernel: KernelSpace, table: PartitionTable) -> PartitionEntry | None:
    """Return the entry of LPID 0; a host that is a guest itself has none."""
    return table.first if _is_own(kernel) else None


def _is_own(kernel: KernelSpace) -> bool:
    """Say whether the table is the host's own (``partition_tb``), which is allocated cleared.

    kvm-hv's ``pseries_partition_tb`` is not cleared when it is allocated, so
    an entry that was never used holds arbitrary old data.
    """
    symbol = kernel.profile.symbols.get("partition_tb")
    return symbol is not None and bool(kernel.pointer(symbol))


def _unowned(
    kernel: KernelSpace, table: PartitionTable, vms: Sequence[Vm], making: Making
) -> Iterator[Unowned]:
    owned = {HOST_LPID, *(vm.lpid for vm in vms)}
    owned |= {nested.shadow_lpid for vm in vms for nested in vm.nested}
    widths = pte.kernel_bits(kernel.profile.page_shift)
    for lpid, entry in table.entries.items():
        if lpid in owned:
            continue
        if not entry.dword:
            if _is_own(kernel):
                yield Unowned(lpid, entry, None)
            continue
        root = pte.partition_root(entry.dword) if entry.dword & pte.HOST_RADIX else None
        leaves: LeafTable | None = None
        if root is not None:
            leaves = making(
                ("table", root, widths), partial(collect_leaves, kernel.memory, root, widths)
            )
        if leaves is not None or _is_own(kernel):
            yield Unowned(lpid, entry, leaves)


def _regions(profile: Profile) -> Iterator[Region]:
    """Yield the memory of the kernel's image that the kernel never frees.

    The part between ``__init_begin`` and ``__init_end`` is freed once the
    kernel has booted (``free_initmem``), so any guest may use it.  If the
    layout does not name that part, only the text before the banner, which
    lies in the read-only data, is known to be the kernel's.
    """
    symbols = {name: int(value, 16) for name, value in IN_VMCOREINFO.findall(profile.vmcoreinfo)}
    symbols |= profile.symbols
    symbols = {
        name: value
        for name, value in symbols.items()
        if LINEAR_MAP <= value < LINEAR_MAP + LINEAR_SIZE
    }
    page = profile.page_size
    yield Region(0, page, VECTORS, "", 0)
    end_of_text = "__init_begin" if "__init_begin" in symbols else "linux_banner"
    for what, first, last in ((TEXT, "_stext", end_of_text), (DATA, "__init_end", "_end")):
        if first in symbols and last in symbols:
            begin, end = (linear_to_physical(symbols[name]) for name in (first, last))
            # The page of the last symbol may hold something else after it, so it is left out.
            if begin < end:
                yield Region(begin - begin % page, end - end % page, what, first, symbols[first])
