"""What must hold for a state of the specification whenever ``mmu_lock`` is free.

An invariant that a memory image can show has the identifier that ``inspector
check`` uses.  The others are about state that no image of memory holds:
translations in hardware, the pages of the VM's process, memory that was released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from inspector import encoding, pte
from inspector.model.memslots import holder
from inspector.model.parts import READ_ONLY, Guest
from inspector.model.rights import L1State, RightsJudgement, judge_rights, misplaced
from inspector.model.state import State
from inspector.model.vm import LeafState, VmState, judge_leaf

__all__ = ["BEYOND_MEMORY", "Broken", "broken"]

BEYOND_MEMORY = frozenset(
    {
        "cached-change",
        "cached-frame",
        "entry-reported",
        "host-leaf-backed",
        "released-guest-unused",
        "rmap-array",
    }
)
"""Invariants that an image of memory cannot show."""

_LEAF_STATES = {
    LeafState.LOST: "shadow-leaf-covered",
    LeafState.HIDDEN: "shadow-leaf-covered",
    LeafState.MOVED: "shadow-leaf-frame",
    LeafState.UNMAPPED: "shadow-leaf-mapped",
}


class Broken(NamedTuple):
    """An invariant that does not hold, and where."""

    invariant: str
    where: str


def broken(
    vm: State, settled: Callable[[int, int], bool] = lambda lpid, address: False
) -> list[Broken]:
    """Return the invariants that do not hold.

    ``settled(lpid, address)`` says that L1 has not changed the translation of an
    L2 address after it last invalidated it.  Only at such an address can a shadow
    leaf be compared with L1's table.
    """
    view = vm.view()
    return [
        *_slots(vm, view),
        *_host_leaves(vm),
        *_guests(vm),
        *(found for guest in vm.guests.values() for found in _shadow(vm, view, guest, settled)),
        *_cached(vm),
        *(Broken("released-guest-unused", text) for text in vm.misuse),
        *(Broken("entry-reported", text) for text in vm.unreported),
    ]


def _slots(vm: State, view: VmState) -> Iterator[Broken]:
    for memslot in vm.memslots.values():
        for index, slot in memslot.slots.items():
            gfn = memslot.base_gfn + index
            if not memslot.holds(gfn):
                yield Broken("rmap-array", f"slot {index} of the {memslot.npages} of {memslot.id}")
            met = [encoding.identity(word) for word in vm.rules.words_met(slot.words)]
            if len(set(met)) != len(met):
                yield Broken("rmap-duplicate", f"gfn {gfn:#x}")
            for word in slot.words:
                if misplaced(view, gfn, word) is not None:
                    yield Broken("rmap-slot", f"gfn {gfn:#x}")


def _host_leaves(vm: State) -> Iterator[Broken]:
    for leaf in vm.host.leaves.values():
        memslot = vm.memslot_of(leaf.address >> vm.page_shift)
        if memslot is None or holder([memslot], leaf, vm.page_shift) is None:
            yield Broken("host-leaf-memslot", f"{leaf.address:#x}")
            continue
        if memslot.flags & READ_ONLY and leaf.entry & pte.WRITE:
            yield Broken("host-leaf-memslot", f"{leaf.address:#x}")
        hva = memslot.hva + leaf.address - (memslot.base_gfn << vm.page_shift)
        backing = vm.process.at(hva)
        if backing is None or backing.translate(hva) != leaf.frame:
            yield Broken("host-leaf-backed", f"{leaf.address:#x}")


def _guests(vm: State) -> Iterator[Broken]:
    shadow_lpids = [guest.shadow_lpid for guest in vm.guests.values()]
    for lpid, guest in vm.guests.items():
        if lpid != guest.l1_lpid:
            yield Broken("nested-lpid", f"{lpid}")
        if guest.refcnt < 1:
            yield Broken("nested-refcount", f"{lpid}")
        known = 0 < guest.shadow_lpid < pte.PARTITION_ENTRIES
        if shadow_lpids.count(guest.shadow_lpid) > 1 or guest.shadow_lpid == vm.lpid or not known:
            yield Broken("shadow-lpid", f"{lpid}")
        entered = vm.partition.get(guest.shadow_lpid)
        if entered is not guest.shadow and (entered is not None or guest.shadow.leaves):
            yield Broken("partition-entry", f"{lpid}")


def _shadow(
    vm: State, view: VmState, guest: Guest, settled: Callable[[int, int], bool]
) -> Iterator[Broken]:
    for leaf in guest.shadow.leaves.values():
        where = f"{guest.l1_lpid}:{leaf.address:#x}"
        judged = judge_leaf(view, guest.l1_lpid, leaf)
        rights = judge_rights(view, guest.l1_lpid, leaf)
        if judged.state is not LeafState.COVERED:
            yield Broken(_LEAF_STATES[judged.state], where)
        elif rights is not None:
            yield from _excess(vm, rights, where)
            if settled(guest.l1_lpid, leaf.address):
                yield from _beside_l1(vm, rights, where)


def _excess(vm: State, rights: RightsJudgement, where: str) -> Iterator[Broken]:
    if rights.excess.permissions:
        yield Broken("shadow-leaf-permission", where)
    if rights.excess.larger:
        yield Broken("shadow-leaf-size", where)
    # Hardware that sets R and C itself sets them in the shadow leaf only.
    if not vm.hardware_sets_rc and rights.excess.recorded:
        yield Broken("shadow-leaf-rc", where)


def _beside_l1(vm: State, rights: RightsJudgement, where: str) -> Iterator[Broken]:
    if rights.l1_state is not L1State.AGREES:
        yield Broken("shadow-leaf-l1", where)
    if not vm.hardware_sets_rc and rights.l1_recorded:
        yield Broken("shadow-leaf-rc", where)


def _cached(vm: State) -> Iterator[Broken]:
    tables = {guest.shadow_lpid: guest.shadow for guest in vm.guests.values()}
    tables[vm.lpid] = vm.host
    for lpid, cached in vm.tlb.items():
        for leaf in cached.leaves.values():
            now = tables[lpid].at(leaf.address) if lpid in tables else None
            where = f"LPID {lpid}, {leaf.address:#x}"
            if now is None or now.translate(leaf.address) != leaf.frame:
                yield Broken("cached-frame", where)
            elif leaf.entry & ~now.entry & pte.CHANGED:
                yield Broken("cached-change", where)
