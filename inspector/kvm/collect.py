"""Collect the snapshot of a host from its kernel address space.

The walk starts at ``vm_list`` and follows the structures that
virt/kvm/kvm_main.c and arch/powerpc/kvm/book3s_hv_nested.c keep.  A part that
cannot be read is noted as a gap, and the rest is still collected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from inspector import pte
from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.kernel.host import kvm_modules, require_radix
from inspector.kvm.by_form import vms_by_form
from inspector.kvm.containers import memslot_addresses, nested_guest_addresses
from inspector.kvm.hash_rmap import read_hash_rmaps
from inspector.kvm.host_state import read_host_state
from inspector.kvm.partition import partition_entry, partition_table
from inspector.kvm.rmap import NO_RMAPS, read_rmaps
from inspector.kvm.snapshot import (
    NO_HASH_RMAPS,
    Gap,
    HashRmaps,
    Memslot,
    Nested,
    Part,
    PartitionEntry,
    Places,
    Rmaps,
    Snapshot,
    Vm,
    VmList,
)
from inspector.memory.interface import why_missing
from inspector.memory.numbers import addresses
from inspector.memory.results import Making, anew
from inspector.structures.lists import list_entries
from inspector.structures.modules import exported_symbol, module_values
from inspector.structures.radix import LeafTable, TableProblem, collect_leaves
from inspector.structures.space import GuestSpace, KernelSpace
from inspector.structures.witness import Comparison, Word

__all__ = ["collect", "held_locks", "vm_list"]

QSPINLOCK_LOCKED = 0x1
WORD = 8
NAMED = 8
"""Number of missing nodes, or of HPT entries, that the text of a gap names."""
CONFIRMING = (
    "arch.mmu_ready",
    "arch.nested_enable",
    "arch.pgtable",
    "arch.radix",
    "created_vcpus",
    "mm",
    "nr_memslot_pages",
    "online_vcpus",
    "slots_lock.owner",
    "users_count",
)
"""Members of ``struct kvm`` that confirm others; older captures do not have them."""
MEMSLOT_PAGES = (1 << 31) - 1
"""The most that a memslot may have (``KVM_MEM_MAX_NR_PAGES``)."""

Item = TypeVar("Item")


def vm_list(kernel: KernelSpace) -> int | None:
    """Return the address of KVM's list of VMs, None where nothing names it.

    Raises:
        TargetNotSupported: KVM-HV is not loaded, or the host does not use
            the radix MMU.
    """
    require_radix(kernel)
    if "vm_list" in kernel.profile.symbols:
        return kernel.profile.symbols["vm_list"]
    modules = kvm_modules(kernel)
    values = module_values(kernel, modules["kvm"], "vm_list")
    if len(values) == 1:
        return values[0]
    anchor, distance = kernel.profile.anchors.get("vm_list", ("", 0))
    exported = exported_symbol(kernel, modules["kvm"], anchor) if anchor else None
    return None if exported is None else exported + distance


def held_locks(kernel: KernelSpace, vms: int | None) -> list[int]:
    """Return the addresses of the VMs whose ``mmu_lock`` is held; unreadable VMs are left out."""
    held = []
    for vm in _gather(_vms(kernel, vms), [], ""):
        with suppress(MemoryNotReadable):
            if _is_held(kernel, kernel.field("kvm", vm, "mmu_lock")):
                held.append(vm)
    return held


def collect(kernel: KernelSpace, vms: int | None, making: Making = anew) -> Snapshot:
    """Collect every VM on the list at ``vms``, or, if that is None, on the list found by form.

    Args:
        kernel: the host's kernel.
        vms: the address of the list.
        making: makes VMs, tables and rmaps, or returns them unchanged from an earlier moment.
    """
    gaps: list[Gap] = []
    found = []
    comparison = Comparison()
    partition = _Partition.find(kernel)
    listed = _gather(_vms(kernel, vms, comparison), gaps, "the list of VMs")
    for address in listed:
        try:
            found.append(
                making(("vm", address, partition), partial(_vm, kernel, address, partition, making))
            )
        except (BadData, MemoryNotReadable) as error:
            gaps.append(Gap(f"the VM at {address:#x}: {error}"))
    host = read_host_state(kernel, partition.table, partition.why, found, making)
    if partition.damaged:
        gaps.append(Gap(f"the partition table: {partition.why}"))
    if host.lost:
        gaps.append(Gap(f"entries of the partition table: {host.lost}"))
    return Snapshot(
        release=kernel.profile.release,
        build_id=kernel.profile.build_id,
        page_shift=kernel.profile.page_shift,
        vms=tuple(found),
        gaps=tuple(gaps),
        host=host,
        vm_list=VmList(len(listed), comparison.given, making("users", partial(_users, kernel))),
    )


def _vms(
    kernel: KernelSpace, vms: int | None, comparison: Comparison | None = None
) -> Iterator[int]:
    if vms is None:
        yield from vms_by_form(kernel)
    else:
        yield from list_entries(kernel, vms, "kvm", "vm_list", comparison)


def _users(kernel: KernelSpace) -> Word | None:
    """Return the number of references to kvm_hv, None if kvm_hv is built in or it is unknown."""
    if "vm_list" in kernel.profile.symbols or "refcnt" not in kernel.profile.struct("module"):
        return None
    try:
        return _word(kernel, "module", kvm_modules(kernel)["kvm_hv"], "refcnt")
    except InspectorError:
        # Without the list of modules there is no second word for the number of VMs.
        return None


def _word(kernel: KernelSpace, struct: str, address: int, member: str) -> Word | None:
    """Return a member that only confirms others, None where it is missing."""
    layout = kernel.profile.struct(struct)
    if member not in layout:
        return None
    offset, size = layout.place(member)
    try:
        value = kernel.unsigned(address + offset, size)
    except MemoryNotReadable:
        return None
    return Word(f"struct {struct}, {member}", address + offset, value, size)


class _Partition(NamedTuple):
    """The address of the partition table, or why it is unknown.

    ``damaged`` says that a word that leads to the table is damaged or missing.
    """

    table: int | None = None
    why: str = ""
    damaged: bool = False

    @classmethod
    def find(cls, kernel: KernelSpace) -> _Partition:
        try:
            return cls(partition_table(kernel))
        except InspectorError as error:
            return cls(None, str(error), not isinstance(error, TargetNotSupported))

    def entry(self, kernel: KernelSpace, lpid: int, gaps: list[Gap]) -> PartitionEntry | None:
        """Return an LPID's entry, or None and add a gap; a missing table makes only one gap."""
        if self.table is None:
            gap = Gap(f"{Part.PARTITION.value}: {self.why}", Part.PARTITION, whole=True)
            if gap not in gaps:
                gaps.append(gap)
            return None
        try:
            return partition_entry(kernel, self.table, lpid)
        except (BadData, MemoryNotReadable) as error:
            gaps.append(Gap(f"partition-table entry of LPID {lpid}: {error}", Part.PARTITION))
            return None


def _is_held(kernel: KernelSpace, word: int) -> bool:
    """Say whether a spinlock is held.

    A queued spinlock also counts waiters in its word: only its lowest bit
    says that it is held.  A plain one holds a token while it is held.
    """
    if "qspinlock" in kernel.profile.structs:
        return bool(word & QSPINLOCK_LOCKED)
    return word != 0


def _gather(
    items: Iterator[Item], gaps: list[Gap], what: str, part: Part | None = None
) -> list[Item]:
    """Return the items that an iterator yields before it fails, and add a gap for the failure."""
    taken: list[Item] = []
    try:
        for item in items:
            taken.append(item)
    except (BadData, MemoryNotReadable) as error:
        gaps.append(Gap(f"{what}: {error}", part))
    return taken


def _vm(kernel: KernelSpace, address: int, partition: _Partition, making: Making) -> Vm:
    def field(member: str) -> int:
        return kernel.field("kvm", address, member)

    gaps: list[Gap] = []
    lock = field("mmu_lock")
    radix = bool(field("arch.radix"))
    of_memslots, of_nested = Comparison(), Comparison()
    memslots = _in_order(_memslots(kernel, address, gaps, of_memslots))
    host, rmaps = LeafTable.empty(), NO_RMAPS
    nested: list[Nested] = []
    unread: list[int] | None = []
    strays: list[tuple[int, int]] = []
    hash_rmaps = NO_HASH_RMAPS
    if radix:
        host = _table(kernel, field("arch.pgtable"), making)
        rmaps = making(("rmaps", memslots), lambda: read_rmaps(kernel, memslots))
        nested, unread = _nested_guests(
            kernel, address, memslots, gaps, partition, making, of_nested
        )
    else:
        hash_rmaps = read_hash_rmaps(kernel, address, memslots, gaps)
        gaps += _rmap_gaps(kernel, memslots, hash_rmaps, Part.RINGS)
        gaps += _ring_gaps(hash_rmaps)
        strays = _strays(kernel, address, of_nested)
    pid = None
    try:
        # This member is far from the others, in a page that may be missing by itself.
        pid = field("userspace_pid")
    except MemoryNotReadable as error:
        gaps.append(Gap(f"the process of the VM: {error}"))
    lpid = field("arch.lpid")
    # A hash guest runs without an entry of this form, so a missing entry is no gap.
    own = partition.entry(kernel, lpid, gaps if radix else [])
    gaps += _table_gaps("L0's table", host, Part.HOST)
    gaps += _rmap_gaps(kernel, memslots, rmaps, Part.RMAPS)
    gaps += _list_gaps(rmaps)
    return Vm(
        address=address,
        lpid=lpid,
        pid=pid,
        radix=radix,
        nesting=bool(field("arch.nested_enable")),
        l1_ptcr=field("arch.l1_ptcr"),
        mmu_lock=lock,
        locked=_is_held(kernel, lock),
        memslots=memslots,
        rmaps=rmaps,
        host=host,
        nested=tuple(nested),
        gaps=tuple(gaps),
        hash_rmaps=hash_rmaps,
        unread_guests=None if unread is None else tuple(unread),
        pgtable=field("arch.pgtable") if radix else 0,
        partition=own,
        strays=tuple(strays),
        members={
            member: word
            for member in CONFIRMING
            if (word := _word(kernel, "kvm", address, member)) is not None
        },
        memslot_words=of_memslots.given,
        nested_words=of_nested.given,
        places={
            **_places(
                kernel,
                "kvm",
                address,
                ("arch.lpid", "arch.pgtable", "arch.l1_ptcr"),
                ("arch.process_table",),
            ),
            "radix": _place(kernel, "kvm", address, "arch.radix"),
            "nesting": _place(kernel, "kvm", address, "arch.nested_enable"),
            "pid": _place(kernel, "kvm", address, "userspace_pid"),
        },
        frames=_frames(kernel, address, kernel.profile.struct("kvm").size),
        page_directory=_page_directory(kernel, address),
        process_table=_optional(kernel, "kvm", address, "arch.process_table"),
    )


def _strays(kernel: KernelSpace, vm: int, comparison: Comparison) -> list[tuple[int, int]]:
    """Return the nested guests of a hash guest, which should have none."""
    found: list[tuple[int, int]] = []
    try:
        found += nested_guest_addresses(kernel, vm, comparison)
    except (BadData, MemoryNotReadable) as error:
        comparison.lacks(f"whether a hash guest has nested guests: {error}")
    return found


def _optional(kernel: KernelSpace, struct: str, address: int, member: str) -> int | None:
    """Return a member, or None if the layout or the target does not have it."""
    if member not in kernel.profile.struct(struct):
        return None
    with suppress(MemoryNotReadable):
        return kernel.field(struct, address, member)
    return None


def _frames(kernel: KernelSpace, address: int, size: int) -> tuple[int, ...]:
    """Return the physical addresses of the pages that a structure lies in."""
    page = kernel.page_size
    first = address - address % page
    where = addresses([first + page * i for i in range(-(-(address + size - first) // page))])
    physical, known = kernel.translate(where)
    return tuple(physical[known].tolist())


def _page_directory(kernel: KernelSpace, vm: int) -> int:
    """Return the kernel address of the page table of a VM's process, 0 if it is not known."""
    with suppress(BadData, MemoryNotReadable):
        return _process_root(kernel, vm)
    return 0


def _process_root(kernel: KernelSpace, vm: int) -> int:
    """Return the kernel address of the page table of a VM's process.

    Raises:
        BadData: the root of a page table cannot be at the address.
        MemoryNotReadable: a word that leads to it is missing.
    """
    mm = kernel.field("kvm", vm, "mm")
    root = kernel.field("mm_struct", mm, "pgd")
    if not kernel.can_hold(root, 1, WORD << pte.PGD_BITS):
        raise BadData(
            f"the process memory at {mm:#x} says that its page table is at {root:#x}, where none "
            "can be"
        )
    return root


def _places(
    kernel: KernelSpace,
    struct: str,
    address: int,
    members: Sequence[str],
    optional: Sequence[str] = (),
) -> Places:
    """Return the address and size of members, named by the last part of their paths."""
    layout = kernel.profile.struct(struct)
    there = (*members, *(name for name in optional if name in layout))
    return {member.rpartition(".")[2]: _place(kernel, struct, address, member) for member in there}


def _place(kernel: KernelSpace, struct: str, address: int, member: str) -> tuple[int, int]:
    offset, size = kernel.profile.struct(struct).place(member)
    return address + offset, size


def _rmap_gaps(
    kernel: KernelSpace, memslots: Sequence[Memslot], rmaps: Rmaps | HashRmaps, part: Part | None
) -> Iterator[Gap]:
    for first, pages in rmaps.unread:
        slot = next(slot for slot in memslots if 0 <= first - slot.base_gfn < slot.npages)
        where = slot.rmap + WORD * (first - slot.base_gfn)
        why = why_missing(kernel, where, WORD)
        yield Gap(
            f"rmap array: {pages} slots from gfn {first:#x}, at kernel address {where:#x}, "
            f"are not readable: {why}",
            part,
        )


def _ring_gaps(rmaps: HashRmaps) -> Iterator[Gap]:
    """Yield a gap for the HPT entries whose links are missing."""
    lost = [problem for problem in rmaps.problems if problem.kind == "unreadable"]
    if lost:
        some = ", ".join(f"{problem.index:#x}" for problem in lost[:NAMED])
        yield Gap(
            f"rings of HPT entries: the links of {len(lost)} entries are not readable, of index "
            f"{some}{', ...' if len(lost) > NAMED else ''}",
            Part.RINGS,
        )


def _list_gaps(rmaps: Rmaps) -> Iterator[Gap]:
    """Yield a gap for each reason why nodes are missing, with some of their addresses."""
    by_reason: dict[str, list[str]] = {}
    for problem in rmaps.problems:
        if problem.missing:
            node = f"{problem.link:#x} (gfn {int(rmaps.gfn[problem.slot]):#x})"
            by_reason.setdefault(problem.why, []).append(node)
    for why, nodes in by_reason.items():
        some = ", ".join(nodes[:NAMED]) + (", ..." if len(nodes) > NAMED else "")
        yield Gap(
            f"rmap lists: {len(nodes)} break off at nodes that are not readable, "
            f"at kernel address {some}: {why}",
            Part.RMAPS,
        )


def _table_gaps(name: str, table: LeafTable, part: Part) -> list[Gap]:
    return [Gap(f"{name}: {p.text}", part) for p in table.problems if p.missing]


def _table(kernel: KernelSpace, pgtable: int, making: Making) -> LeafTable:
    """Collect a table that L0 built: L0's own for a guest, or a shadow table."""
    if not pgtable:
        return LeafTable.empty()
    root = pte.Root(kernel.physical(pgtable), pte.PGD_BITS)
    widths = pte.kernel_bits(kernel.profile.page_shift)
    return making(("table", root, widths), partial(collect_leaves, kernel.memory, root, widths))


def _in_order(memslots: list[Memslot]) -> tuple[Memslot, ...]:
    """Sort memslots by gfn; kernels that keep them in an array have the highest gfn first."""
    return tuple(sorted(memslots, key=lambda memslot: memslot.base_gfn))


def _memslots(
    kernel: KernelSpace, vm: int, gaps: list[Gap], comparison: Comparison
) -> list[Memslot]:
    """Return the memslots of address space 0."""
    found = []
    slots = memslot_addresses(kernel, vm, comparison)
    for slot in _gather(slots, gaps, "memslots", Part.MEMSLOTS):
        try:
            found.append(_memslot(kernel, slot))
        except (BadData, MemoryNotReadable) as error:
            gaps.append(Gap(f"the memslot at {slot:#x}: {error}", Part.MEMSLOTS))
    return found


def _memslot(kernel: KernelSpace, slot: int) -> Memslot:
    def field(member: str) -> int:
        return kernel.field("kvm_memory_slot", slot, member)

    memslot = Memslot(
        address=slot,
        id=field("id"),
        base_gfn=field("base_gfn"),
        npages=field("npages"),
        flags=field("flags"),
        userspace_addr=field("userspace_addr"),
        rmap=field("arch.rmap"),
        as_id=as_id.value if (as_id := _word(kernel, "kvm_memory_slot", slot, "as_id")) else 0,
        places=_places(
            kernel,
            "kvm_memory_slot",
            slot,
            ("id", "base_gfn", "npages", "arch.rmap", "userspace_addr", "flags"),
        ),
    )
    end = (memslot.base_gfn + memslot.npages) << kernel.profile.page_shift
    if memslot.npages > MEMSLOT_PAGES or end > (1 << pte.TREE_BITS):
        raise BadData(
            f"it says that it has {memslot.npages} pages from gfn {memslot.base_gfn:#x}, "
            "which no guest can have"
        )
    return memslot


def _nested_guests(
    kernel: KernelSpace,
    vm: int,
    memslots: tuple[Memslot, ...],
    gaps: list[Gap],
    partition: _Partition,
    making: Making,
    comparison: Comparison,
) -> tuple[list[Nested], list[int] | None]:
    """Return the L2 guests of a VM, and the LPIDs of the unreadable ones, None if not all known."""
    guest: _Guest | InspectorError
    try:
        guest = _Guest(_process_root(kernel, vm), memslots)
    except (BadData, MemoryNotReadable) as error:
        gaps.append(Gap(f"the page table of the VM's process: {error}", Part.VM))
        guest = error
    found: list[Nested] = []
    unread: list[int] = []
    cut: list[Gap] = []
    for lpid, address in _gather(
        nested_guest_addresses(kernel, vm, comparison), cut, "nested guests", Part.NESTED
    ):
        try:
            nested = making(
                ("nested", lpid, address, guest),
                partial(_nested, kernel, lpid, address, guest, making),
            )
        except InspectorError as error:
            gaps.append(Gap(f"nested guest {lpid}: {error}", Part.NESTED))
            unread.append(lpid)
            continue
        entry = partition.entry(kernel, nested.shadow_lpid, gaps)
        gaps += _table_gaps(f"shadow table of nested guest {lpid}", nested.shadow, Part.SHADOW)
        if nested.l1 is not None:
            gaps += _table_gaps(f"L1's table for nested guest {lpid}", nested.l1, Part.L1)
        found.append(replace(nested, partition=entry))
    gaps += cut
    return found, None if cut else unread


class _Guest(NamedTuple):
    """The way to L1's memory: the page table of its process, and its memslots."""

    page_directory: int
    memslots: tuple[Memslot, ...]


def _l1_table(
    kernel: KernelSpace, guest: _Guest | InspectorError, root: pte.Root, making: Making
) -> LeafTable:
    if isinstance(guest, _Guest):
        space = GuestSpace(kernel, *guest)
        return making(("L1's table", root, guest), lambda: collect_leaves(space, root))
    text = f"L1's memory cannot be reached: {guest}"
    return LeafTable.empty((TableProblem(0, root.table, text, missing=True),))


def _nested(
    kernel: KernelSpace,
    lpid: int,
    address: int,
    guest: _Guest | InspectorError,
    making: Making,
) -> Nested:
    def field(member: str) -> int:
        return kernel.field("kvm_nested_guest", address, member)

    shadow = field("shadow_pgtable")
    dword = field("l1_gr_to_hr")
    root = pte.partition_root(dword) if dword else None
    host = _word(kernel, "kvm_nested_guest", address, "l1_host")
    return Nested(
        address=address,
        lpid=lpid,
        l1_lpid=field("l1_lpid"),
        shadow_lpid=field("shadow_lpid"),
        refcnt=field("refcnt"),
        l1_gr_to_hr=dword,
        process_table=field("process_table"),
        shadow_pgtable=shadow,
        shadow=_table(kernel, shadow, making),
        l1=_l1_table(kernel, guest, root, making) if root else None,
        l1_host=host.value if host else None,
        places=_places(
            kernel,
            "kvm_nested_guest",
            address,
            ("l1_lpid", "shadow_lpid", "shadow_pgtable", "refcnt", "process_table"),
            ("l1_host",),
        ),
    )
