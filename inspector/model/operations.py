"""What can happen to a VM from outside: its process, its vCPUs, its memory layout.

Each operation is atomic here.  In the kernel, ``mmu_lock`` makes it so, or the
invalidation count that makes a fault try again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from inspector import pte
from inspector.model import guests, removal
from inspector.model.page_fault import (
    Access,
    FaultOutcome,
    host_page_fault,
    nested_page_fault,
    reload,
)
from inspector.model.parts import DIRTY_LOGGED, Memslot
from inspector.model.state import State
from inspector.model.vm import Leaf, Table

__all__ = [
    "Trap",
    "add_memslot",
    "age_pages",
    "delete_memslot",
    "l1_access",
    "l1_store",
    "l2_access",
    "move_memslot",
    "process_map",
    "process_unmap",
    "set_memslot_flags",
]

FAULT_ATTEMPTS = 5
"""How often an access is tried: for a stale permission, R/C, instantiation, and the access.

The fifth is for a widened leaf (the departure present-leaf-widened): it can need R/C twice.
"""

Trap = FaultOutcome | None
"""How an access ends; None if it succeeds."""


def l1_store(vm: State, address: int, value: int) -> None:
    """L1 writes a doubleword of its memory, in host order."""
    vm.l1_memory[address] = value


def l1_access(vm: State, gpa: int, access: Access) -> Trap:
    """L1 touches a page of its own memory."""

    def fault(translated: bool, set_rc: bool) -> FaultOutcome:
        return host_page_fault(vm, gpa, access, set_rc=set_rc)

    return _access(vm, vm.host, vm.lpid, gpa, access, fault)


def l2_access(vm: State, lpid: int, address: int, access: Access) -> Trap:
    """L1 enters L2 (``kvmhv_enter_nested_guest``), and L2 touches a page."""
    guest = guests.get(vm, lpid, create=True)
    if guest is None:
        return FaultOutcome.REFUSED
    if not guest.l1_gr_to_hr:
        reload(vm, guest)

    def fault(translated: bool, set_rc: bool) -> FaultOutcome:
        return nested_page_fault(vm, guest, address, access, translated=translated, set_rc=set_rc)

    outcome = _access(vm, guest.shadow, guest.shadow_lpid, address, access, fault)
    guests.put(vm, guest)
    if not vm.rules.result_written_back(vm.big_endian):
        vm.unreported.append(f"nested guest {lpid} ran")
        return FaultOutcome.REFUSED
    return outcome


def process_map(vm: State, hva: int, frame: int, shift: int, *, writable: bool = True) -> None:
    """The host maps another page into the process (fault, copy on write, migration, merge)."""
    process_unmap(vm, hva, 1 << shift)
    flags = pte.VALID | pte.LEAF | pte.READ | pte.REFERENCED
    flags |= pte.WRITE | pte.CHANGED if writable else 0
    vm.process.put(Leaf(hva, flags | frame, shift))


def process_unmap(vm: State, hva: int, size: int) -> None:
    """The host takes pages away (``kvm_unmap_gfn_range_hv``, by the MMU notifier).

    A larger page that either end of the range cuts is split: all of it is
    unmapped for the guest, and the process keeps the rest of it in single pages.
    """
    gone = range(hva, hva + size)
    ends = {vm.process.at(hva), vm.process.at(gone[-1])}
    cut = [leaf for leaf in ends if leaf and not hva <= leaf.address <= gone.stop - leaf.size]
    first = min([hva, *(leaf.address for leaf in cut)])
    end = max([gone.stop, *(leaf.address + leaf.size for leaf in cut)])
    for leaf in vm.process.inside(first, end - first):
        vm.process.drop(leaf)
    for memslot, gfns in _mapped(vm, first, end - first):
        for gfn in vm.rules.unmapped_gfns(gfns):
            removal.unmap_gfn(vm, memslot, gfn)
    for leaf in cut:
        _keep_rest(vm.process, leaf, gone, vm.page_shift)


def age_pages(vm: State, hva: int, size: int) -> bool:
    """The host asks whether pages were used, and clears that mark (``kvm_age_gfn_hv``)."""
    young = [
        removal.age(vm, memslot, gfn) for memslot, gfns in _mapped(vm, hva, size) for gfn in gfns
    ]
    return any(young)


def add_memslot(vm: State, memslot: Memslot) -> None:
    """The process adds memory (KVM_MR_CREATE); its rmap array is all zeros."""
    vm.memslots[memslot.id] = memslot


def delete_memslot(vm: State, id: int) -> None:
    """The process takes memory away (KVM_MR_DELETE)."""
    removal.flush_memslot(vm, vm.memslots[id])
    del vm.memslots[id]


def move_memslot(vm: State, id: int, base_gfn: int) -> None:
    """The process moves memory to other guest pages (KVM_MR_MOVE), with its rmap array."""
    memslot = vm.memslots[id]
    removal.flush_memslot(vm, memslot)
    memslot.base_gfn = base_gfn


def set_memslot_flags(vm: State, id: int, flags: int) -> None:
    """The process changes flags; if dirty logging changes, every page is unmapped."""
    memslot = vm.memslots[id]
    changed, memslot.flags = memslot.flags ^ flags, flags
    if changed & DIRTY_LOGGED:
        removal.flush_memslot(vm, memslot)


def _access(
    vm: State,
    table: Table,
    lpid: int,
    address: int,
    access: Access,
    fault: Callable[[bool, bool], FaultOutcome],
) -> Trap:
    """Do what hardware does: translate, call the kernel if that fails, and try again."""
    needed = access.value | pte.REFERENCED | (pte.CHANGED if access.writing else 0)
    cached = vm.tlb.setdefault(lpid, Table())
    held = cached.at(address)
    if held is not None and not needed & ~held.entry:
        return None
    for _ in range(FAULT_ATTEMPTS):
        leaf = table.at(address)
        permitted = leaf is not None and bool(leaf.entry & access.value)
        if leaf is not None and permitted:
            if vm.hardware_sets_rc:
                leaf = leaf._replace(entry=leaf.entry | needed)
                table.put(leaf)
            if not needed & ~leaf.entry:
                cached.put(leaf)
                return None
        outcome = fault(leaf is not None and not permitted, permitted)
        if outcome is not FaultOutcome.RETRY:
            return outcome
    raise AssertionError(f"the access to {address:#x} is never settled")


def _mapped(vm: State, hva: int, size: int) -> Iterator[tuple[Memslot, range]]:
    """Yield each memslot that a range of the process's memory backs, and the gfns in it."""
    for memslot in vm.memslots.values():
        first = (max(hva, memslot.hva) - memslot.hva) >> vm.page_shift
        end = min(
            (hva + size - memslot.hva + (1 << vm.page_shift) - 1) >> vm.page_shift, memslot.npages
        )
        if first < end:
            yield memslot, range(memslot.base_gfn + first, memslot.base_gfn + end)


def _keep_rest(process: Table, leaf: Leaf, without: range, shift: int) -> None:
    """Map the rest of a leaf that was split, in pages of ``2^shift`` bytes."""
    for address in range(leaf.address, leaf.address + leaf.size, 1 << shift):
        if address not in without:
            flags = leaf.entry & ~pte.RPN_MASK
            process.put(Leaf(address, flags | leaf.translate(address), shift))
