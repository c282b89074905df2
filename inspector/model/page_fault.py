"""How a page is mapped for L1, and from there for L2.

``__kvmhv_nested_page_fault`` in book3s_hv_nested.c, and
``kvmppc_book3s_instantiate_page``, ``kvmppc_create_pte`` and
``kvmppc_hv_handle_set_rc`` in book3s_64_mmu_radix.c, step by step in the
kernel's order.
"""

from __future__ import annotations

import enum

from inspector import pte
from inspector.model import l1_walk
from inspector.model.parts import READ_ONLY, Guest, Memslot
from inspector.model.removal import unmap_leaf
from inspector.model.slot import ModelSlot
from inspector.model.state import PMD_SHIFT, State
from inspector.model.vm import Leaf, Table

__all__ = [
    "Access",
    "FaultOutcome",
    "host_page_fault",
    "invalidate_shadow",
    "nested_page_fault",
    "reload",
]

FAULT_ADDRESS_MASK = 0x0FFF_FFFF_FFFF_FFFF


class Access(enum.Enum):
    """How a page is accessed; the value is the permission that this needs."""

    READ = pte.READ
    WRITE = pte.WRITE
    EXEC = pte.EXEC

    @property
    def writing(self) -> bool:
        """Whether it is a store."""
        return self is Access.WRITE


class FaultOutcome(enum.Enum):
    """The outcome of a fault."""

    RETRY = "the guest tries again"
    TO_L1 = "L1 is told of the fault"
    TO_L2 = "L2 gets a storage interrupt"
    MMIO = "the page is emulated"
    FAILED = "the VM's process is told of an error"
    REFUSED = "L1 is told that it may not enter the guest"


def host_page_fault(vm: State, gpa: int, access: Access, *, set_rc: bool = False) -> FaultOutcome:
    """``kvmppc_book3s_radix_page_fault``: L1 itself touches a page."""
    memslot = vm.memslot_of(gpa >> vm.page_shift)
    if memslot is None:
        return FaultOutcome.MMIO
    if memslot.flags & READ_ONLY and access.writing:
        return FaultOutcome.TO_L1
    if set_rc and _set_rc(vm.host, gpa, access):
        return FaultOutcome.RETRY
    return (
        FaultOutcome.FAILED
        if _instantiate(vm, gpa, memslot, access) is None
        else FaultOutcome.RETRY
    )


def nested_page_fault(
    vm: State,
    guest: Guest,
    address: int,
    access: Access,
    *,
    translated: bool = False,
    set_rc: bool = False,
) -> FaultOutcome:
    """``__kvmhv_nested_page_fault``: L2 touches a page that its shadow table does not allow.

    ``translated`` says that hardware found a translation that forbids the
    access (DSISR_PROTFAULT and its like), ``set_rc`` that it could not set R
    or C (DSISR_SET_RC).
    """
    if not guest.l1_gr_to_hr:
        reload(vm, guest)
        if not guest.l1_gr_to_hr:
            return FaultOutcome.TO_L1
    address &= FAULT_ADDRESS_MASK
    l1 = l1_walk.translate(vm.read_l1, guest.l1_gr_to_hr, address)
    if isinstance(l1, l1_walk.NoTranslation) or not _allowed(l1, access):
        if translated:
            invalidate_shadow(vm, guest, address)
            return FaultOutcome.RETRY
        return FaultOutcome.TO_L1
    if set_rc:
        needed = _rc_for(access)
        if needed & ~l1.entry:
            return FaultOutcome.TO_L1
        both = _set_both(vm, guest, address, l1.translate(address), access)
        if not both:
            invalidate_shadow(vm, guest, address)
        if not both or not translated:
            return FaultOutcome.RETRY
    if l1.shift < vm.page_shift:
        return FaultOutcome.FAILED

    gpa = l1.translate(address)
    memslot = vm.memslot_of(gpa >> vm.page_shift)
    if memslot is None:
        return FaultOutcome.MMIO
    if memslot.flags & READ_ONLY and access.writing:
        return FaultOutcome.TO_L2
    host = vm.host.at(gpa)
    if host is None or (access.writing and not host.entry & pte.WRITE):
        host = _instantiate(vm, gpa, memslot, access)
        if host is None:
            return FaultOutcome.FAILED
    leaf = _shadow_leaf(vm, l1, host, address, access)
    slot = memslot.slot(vm.rules.slot_gfn(vm.page_shift, gpa, host.shift))
    _create(vm, guest.shadow, leaf, guest.shadow_lpid, (guest.l1_lpid, slot))
    return FaultOutcome.RETRY


def reload(vm: State, guest: Guest) -> None:
    """``kvmhv_update_ptbl_cache``: read L1's partition-table entry, and set the host's."""
    guest.l1_gr_to_hr, guest.process_table = vm.l1_entry(guest.l1_lpid)
    vm.partition[guest.shadow_lpid] = guest.shadow


def invalidate_shadow(vm: State, guest: Guest, address: int) -> int:
    """``kvmhv_invalidate_shadow_pte``: clear a shadow leaf; return log2 of its size."""
    leaf = guest.shadow.at(address)
    if leaf is None:
        return vm.page_shift
    unmap_leaf(vm, guest.shadow, leaf, guest.shadow_lpid)
    return leaf.shift


def _allowed(l1: Leaf, access: Access) -> bool:
    # kvmhv_translate_addr_nested takes a page that may be written for one that may be read.
    needed = pte.READ | pte.WRITE if access is Access.READ else access.value
    return bool(l1.entry & needed)


def _rc_for(access: Access) -> int:
    return pte.REFERENCED | (pte.CHANGED if access.writing else 0)


def _set_both(vm: State, guest: Guest, address: int, gpa: int, access: Access) -> bool:
    """``kvmhv_handle_nested_set_rc``: set R or C in L0's leaf, then in the shadow leaf."""
    host, shadow = vm.host.at(gpa), guest.shadow.at(address)
    if host is None or shadow is None:
        return False
    if not vm.rules.rc_set_on(shadow.translate(address), host.translate(gpa)):
        return False
    return _set_rc(vm.host, gpa, access) and _set_rc(guest.shadow, address, access)


def _set_rc(table: Table, address: int, access: Access) -> bool:
    leaf = table.at(address)
    if leaf is None or (access.writing and not leaf.entry & pte.WRITE):
        return False
    table.put(leaf._replace(entry=leaf.entry | _rc_for(access)))
    return True


def _instantiate(vm: State, gpa: int, memslot: Memslot, access: Access) -> Leaf | None:
    """``kvmppc_book3s_instantiate_page``: map the process's page; None if it has none.

    The returned leaf is the requested one; the leaf in the table may have
    further bits.
    """
    hva = memslot.hva + gpa - (memslot.base_gfn << vm.page_shift)
    process = vm.process.at(hva)
    if process is None or (access.writing and not process.entry & pte.WRITE):
        return None
    shift = vm.page_shift
    if process.shift > shift and not memslot.logs_dirty:
        shift = vm.rules.host_shift(vm.page_shift, memslot, gpa, hva, process.shift)
    flags = (process.entry & (pte.READ | pte.WRITE | pte.CHANGED)) | pte.EXEC | pte.REFERENCED
    if not process.entry & pte.WRITE or memslot.flags & READ_ONLY:
        flags &= ~(pte.WRITE | pte.CHANGED)
    else:
        flags |= pte.CHANGED
    frame = process.translate(hva) & -(1 << shift)
    leaf = Leaf(gpa & -(1 << shift), pte.VALID | pte.LEAF | frame | flags, shift)
    _create(vm, vm.host, leaf, vm.lpid)
    return leaf


def _shadow_leaf(vm: State, l1: Leaf, host: Leaf, address: int, access: Access) -> Leaf:
    """Combine L1's and L0's leaves into the leaf that L2 gets (step 3)."""
    rights = l1.entry & (pte.READ | pte.WRITE | pte.EXEC)
    kept = rights | vm.rules.rc_masked(l1.entry, access.writing)
    variable = pte.READ | pte.WRITE | pte.EXEC | pte.REFERENCED | pte.CHANGED
    entry = (host.entry & ~variable) | (host.entry & kept)
    shift = host.shift
    if shift > l1.shift:
        # The leaf maps only a part of L0's page; L1's address says which.
        shift = PMD_SHIFT if l1.shift > PMD_SHIFT else vm.page_shift
        entry |= l1.translate(address) & ((1 << host.shift) - (1 << shift))
    return Leaf(address & -(1 << shift), entry, shift)


def _create(
    vm: State, table: Table, leaf: Leaf, lpid: int, entry: tuple[int, ModelSlot] | None = None
) -> None:
    """``kvmppc_create_pte``: set a leaf, and insert its rmap entry unless the leaf is present.

    ``entry`` is the L1 LPID of the entry, and the slot that it belongs to.
    """
    present = table.at(leaf.address)
    if present is not None and present.shift == leaf.shift:
        if not (lpid != vm.lpid and vm.rules.replaces(present, leaf)):
            if present.entry != leaf.entry:
                table.put(present._replace(entry=present.entry | leaf.entry))
            return
        unmap_leaf(vm, table, present, lpid)
    elif present is not None and present.shift > leaf.shift:
        unmap_leaf(vm, table, present, lpid)
    else:
        for small in table.inside(leaf.address, leaf.size):
            unmap_leaf(vm, table, small, lpid, address=vm.rules.freed_address(small))
    table.put(leaf)
    if entry is not None:
        l1_lpid, slot = entry
        slot.insert(l1_lpid, leaf.address, vm.rules.words_met)
