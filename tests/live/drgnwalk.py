"""What drgn finds in a dump: its own types, memory and page-table walks, none of the inspector's.

The bits of page-table entries are written down here once more, on purpose.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from drgn import Object, Program, cast
from drgn.helpers.linux.idr import idr_for_each
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.mm import access_remote_vm, virt_to_phys
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

Leaf = tuple[int, int, int, int]
"""Address translated, entry, log2 of the page size, where the entry lies."""
Read = Callable[[int, int], bytes]

MEMSLOT_FIELDS = ("id", "base_gfn", "npages", "flags", "userspace_addr")
NESTED_FIELDS = ("l1_lpid", "shadow_lpid", "refcnt", "l1_gr_to_hr", "process_table")


@dataclass
class DrgnNested:
    """A nested guest: where it is, what it says of itself, its two tables."""

    address: int
    fields: dict[str, int]
    shadow: list[Leaf]
    l1: list[Leaf] | None


@dataclass
class DrgnVm:
    """A VM: its memslots, its slots by gfn as (node, word) in list order, its tables."""

    address: int
    lpid: int
    memslots: dict[int, dict[str, int]]
    slots: dict[int, list[tuple[int, int]]]
    host: list[Leaf]
    nested: dict[int, DrgnNested]


def open_core(core: Path, files: Iterable[Path]) -> Program:
    """Open an ELF core with exactly these files to describe its kernel."""
    program = Program()
    program.set_core_dump(core)
    program.set_enabled_debug_info_finders([])
    program.load_debug_info(list(files))
    return program


def walk(program: Program) -> list[DrgnVm]:
    """Collect every VM on the list, in its order."""
    vms = program["vm_list"].address_of_()
    return [_vm(program, kvm) for kvm in list_for_each_entry("struct kvm", vms, "vm_list")]


def _vm(program: Program, kvm: Object) -> DrgnVm:
    slots = kvm.memslots[0]
    place = f"gfn_node[{int(slots.node_idx)}]"
    tree = slots.gfn_tree.address_of_()
    memslots = list(rbtree_inorder_for_each_entry("struct kvm_memory_slot", tree, place))
    guests = idr_for_each(kvm.arch.kvm_nested_guest_idr.address_of_())
    return DrgnVm(
        address=int(kvm),
        lpid=int(kvm.arch.lpid),
        memslots={
            int(slot): {name: int(slot.member_(name)) for name in MEMSLOT_FIELDS}
            | {"rmap": int(slot.arch.rmap)}
            for slot in memslots
        },
        slots={gfn: words for slot in memslots for gfn, words in _slots(program, slot)},
        host=_built_by_l0(program, kvm.arch.pgtable),
        nested={
            lpid: _nested(program, kvm, memslots, cast("struct kvm_nested_guest *", guest))
            for lpid, guest in guests
            if guest
        },
    )


def _slots(program: Program, memslot: Object) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    rmap, base = memslot.arch.rmap, int(memslot.base_gfn)
    if not rmap:
        return
    array = program.array_type(program.type("unsigned long"), int(memslot.npages))
    for index, head in enumerate(Object(program, array, address=int(rmap)).value_()):
        if head:
            yield base + index, list(_entries(program, head))


def _entries(program: Program, word: int) -> Iterator[tuple[int, int]]:
    while word and not word & 1:
        node = Object(program, "struct rmap_nested *", word)
        yield word, int(node.rmap)
        word = int(node.list.next)
    if word:
        yield 0, word


def _nested(program: Program, kvm: Object, memslots: list[Object], guest: Object) -> DrgnNested:
    def l1_real(address: int, size: int) -> bytes:
        gfn, within = divmod(address, page)
        slot = next(s for s in memslots if 0 <= gfn - int(s.base_gfn) < int(s.npages))
        where = int(slot.userspace_addr) + (gfn - int(slot.base_gfn)) * page + within
        return bytes(access_remote_vm(kvm.mm, where, size))

    page = int(program["PAGE_SIZE"])
    root = int(guest.l1_gr_to_hr)
    return DrgnNested(
        address=int(guest),
        fields={name: int(guest.member_(name)) for name in NESTED_FIELDS},
        shadow=_built_by_l0(program, guest.shadow_pgtable),
        l1=list(_leaves(l1_real, root & 0x0FFF_FFFF_FFFF_FF00, root & 0x1F)) if root else None,
    )


def _built_by_l0(program: Program, table: Object) -> list[Leaf]:
    def physical(address: int, size: int) -> bytes:
        return bytes(program.read(address, size, physical=True))

    return list(_leaves(physical, int(virt_to_phys(table)), 13)) if table else []


def _leaves(read: Read, table: int, bits: int, shift: int = 52, base: int = 0) -> Iterator[Leaf]:
    shift -= bits
    for index, entry in enumerate(struct.unpack(f">{1 << bits}Q", read(table, 8 << bits))):
        address = base + (index << shift)
        if entry >> 62 == 3:
            yield address, entry, shift, table + 8 * index
        elif entry >> 63:
            following = entry & 0x0FFF_FFFF_FFFF_FF00
            yield from _leaves(read, following, entry & 0x1F, shift, address)
