"""Nested guests: how L0 creates and releases them, and what it invalidates for L1.

The hypercalls of book3s_hv_nested.c: H_SET_PARTITION_TABLE, H_ENTER_NESTED as
far as it creates a guest, H_TLB_INVALIDATE and H_RPT_INVALIDATE.
"""

from __future__ import annotations

import enum

from inspector.model.page_fault import invalidate_shadow, reload
from inspector.model.partition import MAX_SIZE_FIELD, PTCR_SIZE_MASK
from inspector.model.parts import Guest
from inspector.model.state import PTCR_BASE_MASK, State

__all__ = [
    "AP_SHIFTS",
    "HcallResult",
    "destroy",
    "get",
    "h_rpt_invalidate",
    "h_set_partition_table",
    "h_tlb_invalidate",
    "put",
]

AP_SHIFTS = {0: 12, 5: 16, 1: 21, 2: 30}
"""Actual page size field of tlbie to log2 of the page (``ap_to_shift``)."""

RANGE_CEILING = 33
"""Pages above which a range is flushed as a whole (``tlb_range_flush_page_ceiling``)."""

H_RPTI_TYPE_TLB, H_RPTI_TYPE_ALL = 0x1, 0xF
"""The kinds of translations that H_RPT_INVALIDATE drops; ALL is TLB, PWC, PRT and PAT together."""

H_RPTI_PAGE_SIZES = {0x1: 12, 0x2: 16, 0x4: 21, 0x8: 30}
EVERYTHING = (1 << 64) - 1


class HcallResult(enum.Enum):
    """The result that L1 gets from a hypercall."""

    SUCCESS = "H_SUCCESS"
    PARAMETER = "H_PARAMETER"
    P4 = "H_P4"


def h_set_partition_table(vm: State, ptcr: int) -> HcallResult:
    """``kvmhv_set_partition_table``: L1 says where its partition table is."""
    if (ptcr & PTCR_SIZE_MASK) > MAX_SIZE_FIELD:
        return HcallResult.PARAMETER
    if vm.memslot_of((ptcr & PTCR_BASE_MASK) >> vm.page_shift) is None:
        return HcallResult.PARAMETER
    vm.ptcr = ptcr
    return HcallResult.SUCCESS


def get(vm: State, lpid: int, *, create: bool = False) -> Guest | None:
    """``kvmhv_get_nested``: take a reference to a guest, which may have to be created."""
    if lpid >= vm.lpid_limit:
        return None
    guest = vm.guests.get(lpid)
    if guest is None:
        if not create:
            return None
        guest = vm.guests[lpid] = Guest(lpid, vm.take_lpid(), refcnt=1)
    guest.refcnt += 1
    return guest


def put(vm: State, guest: Guest) -> None:
    """``kvmhv_put_nested``: give a reference back; the last one releases the guest."""
    _used(vm, guest, "put")
    guest.refcnt -= 1
    if guest.refcnt == 0:
        _release(vm, guest)


def destroy(vm: State) -> None:
    """``kvmhv_release_all_nested`` and ``kvmppc_free_radix``: the VM ends."""
    for guest in list(vm.guests.values()):
        _remove(vm, guest)
    for memslot in vm.memslots.values():
        for slot in memslot.slots.values():
            slot.remove_all(vm.rules.words_met)
    vm.host.leaves.clear()
    _flush_lpid(vm, vm.lpid)


def h_tlb_invalidate(vm: State, ric: int, lpid: int, rb: int, *, prs: bool = False) -> HcallResult:
    """``kvmhv_emulate_priv_tlbie``: L1's tlbie, its RIC, PRS, LPID and rB."""
    scope = (rb >> 10) & 3
    if prs or ric == 3 or scope == 1 or (scope == 0 and ric in (1, 2)):
        return HcallResult.PARAMETER
    if scope == 0:
        ok = _flush_page(vm, lpid, (rb >> 5) & 7, rb >> 12 << 12)
        return HcallResult.SUCCESS if ok else HcallResult.PARAMETER
    if scope == 2:
        _flush_one(vm, lpid, ric)
    else:
        _flush_every(vm, ric)
    return HcallResult.SUCCESS


def h_rpt_invalidate(
    vm: State, lpid: int, kind: int, page_sizes: int, start: int, end: int
) -> HcallResult:
    """``do_h_rpt_invalidate_pat``: invalidate a range, or everything, of a nested guest."""
    if lpid not in vm.guests:
        return HcallResult.SUCCESS
    if (kind & H_RPTI_TYPE_ALL) == H_RPTI_TYPE_ALL:
        _flush_one(vm, lpid, 2)
    elif start == 0 and end == EVERYTHING:
        _flush_one(vm, lpid, 0)
    elif kind & H_RPTI_TYPE_TLB:
        return _flush_range(vm, lpid, page_sizes, start, end)
    return HcallResult.SUCCESS


def _flush_range(vm: State, lpid: int, page_sizes: int, start: int, end: int) -> HcallResult:
    """``do_tlb_invalidate_nested_tlb``."""
    result = HcallResult.P4
    for size, shift in H_RPTI_PAGE_SIZES.items():
        if not page_sizes & size:
            continue
        if ((end - start) >> shift) > RANGE_CEILING:
            _flush_one(vm, lpid, 0)
            return HcallResult.SUCCESS
        field = next(ap for ap, known in AP_SHIFTS.items() if known == shift)
        for address in range(start, max(end, start + 1), 1 << shift):
            if not _flush_page(vm, lpid, field, address >> 12 << 12):
                return HcallResult.P4
        result = HcallResult.SUCCESS
    return result


def _flush_page(vm: State, lpid: int, ap: int, address: int) -> bool:
    """``kvmhv_emulate_tlbie_tlb_addr``: clear the shadow leaves of one page of L1's table."""
    if ap not in AP_SHIFTS:
        return False
    size = 1 << AP_SHIFTS[ap]
    guest = get(vm, lpid)
    if guest is None:
        return True
    address &= -size
    # The kernel counts in its own pages, and does at least one, however small L1's page is.
    left = (size >> vm.page_shift) or 1
    while left > 0:
        shift = invalidate_shadow(vm, guest, address)
        left -= 1 << (shift - vm.page_shift)
        address += 1 << shift
    put(vm, guest)
    return True


def _flush_one(vm: State, lpid: int, ric: int) -> None:
    guest = get(vm, lpid)
    if guest is not None:
        _flush_guest(vm, guest, ric)
        put(vm, guest)


def _flush_every(vm: State, ric: int) -> None:
    """``kvmhv_emulate_tlbie_all_lpid``."""
    for guest in [vm.guests[lpid] for lpid in sorted(vm.guests)]:
        held = vm.rules.flush_all_holds_guest()
        guest.refcnt += held
        _flush_guest(vm, guest, ric)
        if held:
            put(vm, guest)


def _flush_guest(vm: State, guest: Guest, ric: int) -> None:
    """``kvmhv_emulate_tlbie_lpid``: RIC 0 drops the table, 2 also reloads L1's partition entry."""
    if ric in (0, 2):
        guest.shadow.leaves.clear()
        _flush_lpid(vm, guest.shadow_lpid)
    if ric == 2:
        reload(vm, guest)
        if not guest.l1_gr_to_hr:
            _remove(vm, guest)
    _used(vm, guest, "unlocked after a flush")


def _remove(vm: State, guest: Guest) -> None:
    """``kvmhv_remove_nested``: take the guest out of the idr."""
    if vm.guests.get(guest.l1_lpid) is guest:
        del vm.guests[guest.l1_lpid]
        guest.refcnt -= 1
    if guest.refcnt == 0:
        _release(vm, guest)


def _release(vm: State, guest: Guest) -> None:
    """``kvmhv_release_nested``: free the shadow table and the shadow LPID."""
    guest.shadow.leaves.clear()
    vm.partition.pop(guest.shadow_lpid, None)
    vm.lpids.discard(guest.shadow_lpid)
    _flush_lpid(vm, guest.shadow_lpid)
    guest.released = True


def _used(vm: State, guest: Guest, how: str) -> None:
    """Note a use of a guest if it was released before."""
    if guest.released:
        vm.misuse.append(f"the released nested guest {guest.l1_lpid} was {how}")


def _flush_lpid(vm: State, lpid: int) -> None:
    """``kvmhv_flush_lpid``: drop every cached translation of a hardware LPID."""
    vm.tlb.pop(lpid, None)
