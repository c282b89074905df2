"""How pages are unmapped, and how their R and C bits are cleared.

The functions are those of arch/powerpc/kvm/book3s_64_mmu_radix.c and
book3s_hv_nested.c with the same names; all of them run under ``mmu_lock``.
"""

from __future__ import annotations

from collections.abc import Mapping

from inspector import encoding, pte
from inspector.model.parts import Guest, Memslot
from inspector.model.state import State
from inspector.model.vm import Leaf, Table

__all__ = [
    "age",
    "clear_dirty_log",
    "flush_memslot",
    "led_to",
    "remove_rmap_range",
    "test_age",
    "tlbie",
    "unmap_gfn",
    "unmap_leaf",
]


def tlbie(vm: State, lpid: int, address: int, size: int) -> None:
    """``kvmppc_radix_tlbie_page``: drop the cached translations of a hardware LPID in a range."""
    cached = vm.tlb.get(lpid)
    if cached is None:
        return
    whole = cached.at(address)
    for leaf in [whole] if whole else cached.inside(address, size):
        cached.drop(leaf)


def unmap_leaf(
    vm: State,
    table: Table,
    leaf: Leaf,
    lpid: int,
    memslot: Memslot | None = None,
    address: int | None = None,
) -> None:
    """``kvmppc_unmap_pte``: clear a leaf and flush it; for a leaf of L0's, empty its rmap slots.

    ``lpid`` is the hardware LPID of the table.  ``address`` is the guest address
    under which the kernel removes the leaf, if it is not the leaf's own.
    """
    address = leaf.address if address is None else address
    table.drop(leaf)
    tlbie(vm, lpid, address, leaf.size)
    if lpid != vm.lpid:
        return
    memslot = memslot or vm.memslot_of(address >> vm.page_shift)
    if memslot is None:
        return
    first = address & -leaf.size
    remove_rmap_range(vm, memslot, first, leaf.entry & pte.RPN_MASK, leaf.size)
    if leaf.entry & pte.CHANGED and memslot.logs_dirty:
        gfn = first >> vm.page_shift
        memslot.dirty.update(range(gfn, gfn + (leaf.size >> vm.page_shift)))


def remove_rmap_range(vm: State, memslot: Memslot, gpa: int, hpa: int, size: int) -> None:
    """``kvmhv_remove_nest_rmap_range``: empty a range of slots, and clear their shadow leaves."""
    mask = pte.RPN_MASK & -size
    for gfn in range(gpa >> vm.page_shift, (gpa + size) >> vm.page_shift):
        for word in memslot.slot(gfn).remove_all(vm.rules.words_met):
            _remove_entry(vm, word, hpa & mask, mask)


def _remove_entry(vm: State, word: int, hpa: int, mask: int) -> None:
    """``kvmhv_remove_nest_rmap``: clear the shadow leaf of an entry if it still maps there."""
    found = led_to(vm.guests, word, hpa, mask)
    if found is not None:
        guest, leaf = found
        unmap_leaf(vm, guest.shadow, leaf, guest.shadow_lpid)


def led_to(
    guests: Mapping[int, Guest], word: int, hpa: int, mask: int
) -> tuple[Guest, Leaf] | None:
    """Return the shadow leaf that an entry leads to, if it maps into the unmapped host page.

    ``mask`` has the bits of a frame above the size of the host page.
    """
    entry = encoding.decode(word)
    guest = guests.get(entry.lpid)
    leaf = guest.shadow.at(entry.gpa) if guest else None
    return (guest, leaf) if guest and leaf and (leaf.entry & mask) == hpa else None


def unmap_gfn(vm: State, memslot: Memslot, gfn: int) -> None:
    """``kvm_unmap_radix``: unmap a guest page, whatever the size of L0's leaf."""
    leaf = vm.host.at(gfn << vm.page_shift)
    if leaf is not None:
        unmap_leaf(vm, vm.host, leaf, vm.lpid, memslot)


def age(vm: State, memslot: Memslot, gfn: int) -> bool:
    """``kvm_age_radix``: clear R of L0's leaf, and return whether it was set."""
    leaf = vm.host.at(gfn << vm.page_shift)
    if leaf is None or not leaf.entry & pte.REFERENCED:
        return False
    _clear(vm, memslot, leaf, gfn, pte.REFERENCED)
    return True


def test_age(vm: State, gfn: int) -> bool:
    """``kvm_test_age_radix``: return whether R of L0's leaf is set."""
    leaf = vm.host.at(gfn << vm.page_shift)
    return leaf is not None and bool(leaf.entry & pte.REFERENCED)


def clear_dirty_log(vm: State, memslot: Memslot) -> set[int]:
    """``kvmppc_hv_get_dirty_log_radix``: return the pages written since the last call."""
    dirty, memslot.dirty = memslot.dirty, set()
    gfn = memslot.base_gfn
    while memslot.holds(gfn):
        pages = 1
        leaf = vm.host.at(gfn << vm.page_shift)
        if leaf is not None and leaf.entry & pte.CHANGED:
            tlbie(vm, vm.lpid, leaf.address, leaf.size)
            _clear(vm, memslot, leaf, gfn, pte.CHANGED)
            pages = leaf.size >> vm.page_shift
            dirty.update(range(gfn, gfn + pages))
        gfn += pages
    return dirty


def flush_memslot(vm: State, memslot: Memslot) -> None:
    """``kvmppc_radix_flush_memslot``: unmap every page of a memslot."""
    for gfn in memslot.gfns:
        unmap_gfn(vm, memslot, gfn)


def _clear(vm: State, memslot: Memslot, leaf: Leaf, gfn: int, bit: int) -> None:
    """Clear R or C in L0's leaf and, by ``kvmhv_update_nest_rmap_rc_list``, in the shadows."""
    vm.host.put(leaf._replace(entry=leaf.entry & ~bit))
    if not vm.rules.rc_followed():
        return
    mask = pte.RPN_MASK & -leaf.size
    for word in vm.rules.words_met(memslot.slot(vm.rules.rc_gfn(vm.page_shift, leaf, gfn)).words):
        entry = encoding.decode(word)
        guest = vm.guests.get(entry.lpid)
        shadow = guest.shadow.at(entry.gpa) if guest else None
        if guest and shadow and (shadow.entry & mask) == (leaf.entry & mask):
            guest.shadow.put(shadow._replace(entry=shadow.entry & ~bit))
            tlbie(vm, vm.rules.rc_flushed_lpid(guest), entry.gpa, shadow.size)
