"""Physical memory that is known to hold the host's own data.

Page tables, KVM's structures, rmap arrays, list nodes and the kernel's image:
everything that the walk has met, each with the word that leads to it.  None of
these pages may be mapped to a guest, and no two of these things may overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.findings import Evidence
from inspector.checks.proof_words import member
from inspector.kvm.snapshot import ArrayPages, HostState, Snapshot, Vm
from inspector.memory.arrays import blocks
from inspector.memory.numbers import U64, addresses
from inspector.memory.ranges import Ranges, merged
from inspector.regions import LINEAR_MAP, LINEAR_SIZE, linear_to_physical
from inspector.structures.radix import LeafTable

__all__ = ["IMAGE", "NODE", "ROOT", "TABLE", "Group", "KnownMemory", "Thing"]

ARRAY, IMAGE, NODE, ROOT, STRUCTURE, TABLE = "array", "image", "node", "root", "structure", "table"
"""Kinds of things; other invariants report two nodes or two tables at one place."""

CHUNK = np.uint64(16)
"""log2 of the bytes in a chunk of memory, for which the bitmap has one element."""
CHUNKS = 1 << 20
LAST_CHUNK = np.uint64(CHUNKS - 1)
RPN = np.uint64(pte.RPN_MASK)
"""Mask of a leaf's frame.  A walk returns only leaves whose frame is aligned to their size."""
PGD_SIZE = 8 << pte.PGD_BITS


class Group(NamedTuple):
    """Physical ranges of one kind that belong to one owner.

    ``begin`` and ``end`` are parallel, with one row for each range; ``end`` is
    the first address after it.  ``led`` returns for a row the word that leads
    to the range.  ``vm`` is the kernel address of the owner's ``struct kvm``,
    None for the host itself.
    """

    kind: str
    what: str
    vm: int | None
    begin: U64
    end: U64
    led: Callable[[int], Evidence]


class Thing(NamedTuple):
    """One range of a group."""

    group: Group
    row: int

    @property
    def begin(self) -> int:
        """Its first physical address."""
        return int(self.group.begin[self.row])

    @property
    def evidence(self) -> Evidence:
        """The word that leads to it."""
        return self.group.led(self.row)


class KnownMemory:
    """The memory of a host that is known to hold the host's own data.

    A VM whose ``mmu_lock`` was held is left out: it may just have freed memory
    that its tables and lists still lead to.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._page_shift = snapshot.page_shift
        self.groups = [
            group
            for group in (
                *_of_host(snapshot.host, snapshot.vms),
                *(
                    group
                    for vm in snapshot.vms
                    if not vm.locked
                    for group in _of_vm(vm, snapshot.host.sizes, snapshot.page_shift)
                ),
            )
            if group.begin.size
        ]

    @cached_property
    def _every(self) -> tuple[U64, U64, NDArray[np.int64], NDArray[np.int64]]:
        """Begin, end, index of the group and row in it, of every range in address order."""
        nothing = addresses([])
        begin = np.concatenate([nothing, *(group.begin for group in self.groups)])
        end = np.concatenate([nothing, *(group.end for group in self.groups)])
        sizes = [group.begin.size for group in self.groups]
        owner = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.zeros(0, np.int64), *(np.arange(size) for size in sizes)])
        order = np.lexsort((end, begin))
        return begin[order], end[order], owner[order], row[order]

    @cached_property
    def _pages(self) -> Ranges:
        """The pages that hold anything known."""
        begin, end, _, _ = self._every
        return merged(begin, end - begin).widened(1 << self._page_shift)

    @cached_property
    def _bitmap(self) -> NDArray[np.bool_]:
        """Which chunks of memory may hold anything known.

        Chunks whose numbers are equal modulo ``CHUNKS`` share an element, so
        True may be wrong, and False is certain.
        """
        found = np.zeros(CHUNKS, dtype=np.bool_)
        first = self._pages.starts >> CHUNK
        last = (self._pages.starts + self._pages.sizes - np.uint64(1)) >> CHUNK
        count = np.minimum(last - first + np.uint64(1), np.uint64(CHUNKS)).astype(np.int64)
        # the numbers 0, 1, ... within each range, for all ranges in one array
        step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        chunks = np.repeat(first, count) + step.astype(np.uint64)
        found[chunks & LAST_CHUNK] = True
        return found

    def met_by(self, table: LeafTable) -> NDArray[np.int64]:
        """Return the indices of the leaves that map a page that holds anything known."""
        found = [np.zeros(0, dtype=np.int64)]
        if self.groups:
            for part in blocks(len(table)):
                found.append(part.start + self._met_by(table, part))
        return np.concatenate(found)

    def _met_by(self, table: LeafTable, part: slice) -> NDArray[np.int64]:
        """Return the indices of such leaves in one block, counted from its beginning."""
        frame = table.entry[part] & RPN
        near = self._bitmap[(frame >> CHUNK) & LAST_CHUNK]
        near |= table.shift[part] > CHUNK  # the bitmap was asked about their first chunk only
        rows = np.flatnonzero(near)
        begin, size = frame[rows], np.uint64(1) << table.shift[part][rows].astype(np.uint64)
        # The last run of pages that begins before the leaf ends meets it, or none does.
        index = np.searchsorted(self._pages.starts, begin + size) - 1
        reach = self._pages.starts[index] + self._pages.sizes[index]
        return rows[(index >= 0) & (reach > begin)]

    def things_in(self, begin: int, size: int) -> list[Thing]:
        """Return what lies in the pages of a range of memory."""
        unit = 1 << self._page_shift
        low, high = begin // unit * unit, -(-(begin + size) // unit) * unit
        begins, ends, owner, row = self._every
        rows = np.flatnonzero((begins < np.uint64(high)) & (ends > np.uint64(low)))
        return [Thing(self.groups[int(owner[i])], int(row[i])) for i in rows]

    @cached_property
    def overlaps(self) -> tuple[tuple[Thing, Thing], ...]:
        """The pairs of things that lie in the same place, each with the one that begins first."""
        begin, end, owner, row = self._every
        if begin.size < 2:
            return ()
        # A range overlaps an earlier one if it begins before the furthest end of all earlier ones.
        reach = np.maximum.accumulate(end)
        found: list[tuple[Thing, Thing]] = []
        for i in np.flatnonzero(begin[1:] < reach[:-1]) + 1:
            before = np.flatnonzero(end[:i] > begin[i])
            thing = Thing(self.groups[int(owner[i])], int(row[i]))
            for j in before[:PAIRS]:
                other = Thing(self.groups[int(owner[j])], int(row[j]))
                if not _may_share(other, thing):
                    found.append((other, thing))
        return tuple(found)


PAIRS = 4
"""How many things that overlap with one thing are named."""


def _may_share(first: Thing, second: Thing) -> bool:
    """Tell whether two things may overlap, or another invariant reports that they do."""
    kinds = {first.group.kind, second.group.kind}
    if IMAGE in kinds:
        # the kernel's own page table is part of its image
        return kinds == {IMAGE, ROOT} or kinds == {IMAGE}
    same = first.begin == second.begin
    return same and kinds in ({NODE}, {TABLE})


def _of_host(host: HostState, vms: tuple[Vm, ...]) -> Iterator[Group]:
    for region in host.regions:
        shown = Evidence(region.symbol or region.what, "kernel", region.address)
        yield _one(IMAGE, region.what, None, region.begin, region.end, shown)
    if host.root:
        shown = Evidence("swapper_pg_dir", "physical", host.root)
        yield _one(
            ROOT, "the kernel's own page table", None, host.root, host.root + PGD_SIZE, shown
        )
    if host.partition is not None:
        shown = Evidence("the partition table", "physical", host.partition)
        end = host.partition + 16 * pte.PARTITION_ENTRIES
        yield _one(STRUCTURE, "the partition table", None, host.partition, end, shown)
    for directory in dict.fromkeys(vm.page_directory for vm in vms if vm.page_directory):
        if _is_linear(directory):
            begin = linear_to_physical(directory)
            shown = Evidence("the process's page table", "kernel", directory)
            what = "the page table of a VM's process"
            yield _one(ROOT, what, None, begin, begin + PGD_SIZE, shown)


def _one(kind: str, what: str, vm: int | None, begin: int, end: int, shown: Evidence) -> Group:
    return Group(kind, what, vm, addresses([begin]), addresses([end]), lambda row: shown)


def _is_linear(address: int) -> bool:
    return LINEAR_MAP <= address < LINEAR_MAP + LINEAR_SIZE


def _of_vm(vm: Vm, sizes: Mapping[str, int], page_shift: int) -> Iterator[Group]:
    name = f"VM {vm.lpid}"
    here = vm.address
    yield from _structure(vm, sizes, page_shift)
    for slot in vm.memslots:
        if _is_linear(slot.address) and "kvm_memory_slot" in sizes:
            begin = linear_to_physical(slot.address)
            yield _one(
                STRUCTURE,
                f"memslot {slot.id} of {name}",
                here,
                begin,
                begin + sizes["kvm_memory_slot"],
                Evidence(f"memslot {slot.id}", "kernel", slot.address),
            )
    for pages in (*vm.rmaps.pages, *vm.hash_rmaps.pages):
        yield _array(vm, pages, page_shift)
    yield _table(f"L0's table for {name}", here, vm.host, member("struct kvm", vm, "pgtable"))
    for nested in vm.nested:
        if _is_linear(nested.address) and "kvm_nested_guest" in sizes:
            begin = linear_to_physical(nested.address)
            yield _one(
                STRUCTURE,
                f"struct kvm_nested_guest of L2 {nested.lpid} of {name}",
                here,
                begin,
                begin + sizes["kvm_nested_guest"],
                Evidence(f"nested guest {nested.lpid}", "kernel", nested.address),
            )
        root = member("struct kvm_nested_guest", nested, "shadow_pgtable")
        what = f"the shadow table of L2 {nested.lpid} of {name}"
        yield _table(what, here, nested.shadow, root)
    yield _nodes(vm, sizes.get("rmap_nested", 16))


def _structure(vm: Vm, sizes: Mapping[str, int], page_shift: int) -> Iterator[Group]:
    shown = Evidence("struct kvm", "kernel", vm.address)
    what = f"struct kvm of VM {vm.lpid}"
    if _is_linear(vm.address):
        begin = linear_to_physical(vm.address)
        yield _one(STRUCTURE, what, vm.address, begin, begin + sizes.get("kvm", 1), shown)
    elif vm.frames:
        begins = addresses(vm.frames)
        size = np.uint64(1 << page_shift)
        yield Group(STRUCTURE, what, vm.address, begins, begins + size, lambda row: shown)


def _array(vm: Vm, pages: ArrayPages, page_shift: int) -> Group:
    slot = vm.memslots[pages.memslot]
    size = np.uint64(1 << page_shift)
    shown = member(f"memslot {slot.id} of VM {vm.lpid}", slot, "rmap")
    return Group(
        ARRAY,
        f"the rmap array of memslot {slot.id} of VM {vm.lpid}",
        vm.address,
        pages.physical,
        pages.physical + size,
        lambda row: shown._replace(meaning=f"its page at {int(pages.virtual[row]):#x}"),
    )


def _table(what: str, vm: int, table: LeafTable, root: Evidence) -> Group:
    tables = table.tables

    def led(row: int) -> Evidence:
        above = int(tables.above[row])
        if not above:
            return root
        return Evidence("entry that leads to it", "physical", above, int(tables.entry[row]))

    return Group(TABLE, what, vm, tables.table, tables.table + tables.size, led)


def _nodes(vm: Vm, size: int) -> Group:
    rmaps = vm.rmaps
    rows = np.flatnonzero(rmaps.node)
    begin = rmaps.node[rows] & np.uint64(LINEAR_SIZE - 1)
    what = f"a list node of VM {vm.lpid}"
    return Group(
        NODE, what, vm.address, begin, begin + np.uint64(size), partial(_slot_of, vm, rows)
    )


def _slot_of(vm: Vm, rows: NDArray[np.int64], row: int) -> Evidence:
    slot = vm.rmaps[int(vm.rmaps.slot[rows[row]])]
    node = int(vm.rmaps.node[rows[row]])
    meaning = f"gfn {slot.gfn:#x}, whose list has the node at {node:#x}"
    return Evidence("slot", "kernel", slot.where, slot.head, meaning)
