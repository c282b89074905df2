"""The places where a kernel departs from what must hold, as data.

Each departure replaces one rule of ``inspector.model.rules`` and names the
invariants that it breaks.  ``current`` says whether Linux 6.12 to 7.2 still does
so; ``seen`` whether it was seen on a running kernel or only in its source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from inspector import pte
from inspector.model.parts import Guest, Memslot
from inspector.model.rules import MUST_HOLD, Rules
from inspector.model.slot import kernel_walk
from inspector.model.vm import Leaf

__all__ = ["AS_IT_IS", "DEPARTURES", "Departure", "reading"]


@dataclass(frozen=True, kw_only=True)
class Departure:
    """One way in which a kernel does not do what must hold.

    ``rule`` names the field of ``Rules`` that ``does`` replaces; ``breaks`` names
    the invariants that a search finds broken by it.
    """

    id: str
    rule: str
    does: Callable[..., Any]
    statement: str
    source: str
    reference: str
    breaks: tuple[str, ...]
    current: bool
    seen: bool


def _aligned_only(page_shift: int, memslot: Memslot, gpa: int, hva: int, shift: int) -> int:
    return shift if ((gpa ^ hva) & ((1 << shift) - 1)) == 0 else page_shift


def _exact_gfn(page_shift: int, gpa: int, shift: int) -> int:
    return gpa >> page_shift


def _first_only(gfns: range) -> Sequence[int]:
    return gfns[:1]


def _asked_gfn(page_shift: int, leaf: Leaf, gfn: int) -> int:
    return gfn


def _l1_lpid(guest: Guest) -> int:
    return guest.l1_lpid


def _little_endian_only(big_endian: bool) -> bool:
    return not big_endian


def _unmasked(l1_flags: int, writing: bool) -> int:
    return pte.REFERENCED | pte.CHANGED


def _never(*_: object) -> bool:
    return False


def _always(*_: object) -> bool:
    return True


def _frame_as_address(leaf: Leaf) -> int:
    return leaf.frame


_NESTED = "arch/powerpc/kvm/book3s_hv_nested.c"
_RADIX = "arch/powerpc/kvm/book3s_64_mmu_radix.c"

DEPARTURES = (
    Departure(
        id="zero-word-ends-walk",
        rule="words_met",
        does=kernel_walk,
        statement="A list node that holds LPID 0, L2 page 0 has the word 0, which the walk takes "
        "for the end of the list; it never reaches the older entries after that node.",
        source=f"for_each_nest_rmap_safe in {_NESTED}",
        reference="present since nested rmaps were introduced (4.20)",
        breaks=("shadow-leaf-covered",),
        current=True,
        seen=True,
    ),
    Departure(
        id="large-page-beyond-memslot",
        rule="host_shift",
        does=_aligned_only,
        statement="The kernel chooses the size of L0's mapping without checking the memslot's "
        "bounds. A memslot that begins or ends inside a large host page gets a leaf that reaches "
        "beyond it, an rmap index below its array, and a removal that runs past the end of the "
        "array.",
        source=f"kvmppc_book3s_instantiate_page in {_RADIX}, __kvmhv_nested_page_fault and "
        f"kvmhv_remove_nest_rmap_range in {_NESTED}",
        reference="present since nested rmaps were introduced (4.20)",
        breaks=("host-leaf-memslot", "rmap-array"),
        current=True,
        seen=True,
    ),
    Departure(
        id="present-leaf-widened",
        rule="replaces",
        does=_never,
        statement="A fault on an address whose shadow leaf is present adds the bits of the new "
        "entry to it, those of the frame included, and inserts no rmap entry.",
        source=f"kvmppc_create_pte in {_RADIX} (PTE_BITS_MUST_MATCH only warns)",
        reference="present since nested page faults were handled (4.20)",
        breaks=("shadow-leaf-covered", "shadow-leaf-l1", "shadow-leaf-mapped"),
        current=True,
        seen=False,
    ),
    Departure(
        id="rc-flushed-under-l1-lpid",
        rule="rc_flushed_lpid",
        does=_l1_lpid,
        statement="When the kernel clears R or C of a shadow leaf, it flushes the translation "
        "under the LPID that L1 gave the guest, and not under the shadow LPID that the hardware "
        "uses.",
        source=f"kvmhv_update_nest_rmap_rc in {_NESTED}",
        reference="present since R and C are kept in step (5.0)",
        breaks=("cached-change",),
        current=True,
        seen=False,
    ),
    Departure(
        id="rc-set-beside-l0",
        rule="rc_set_on",
        does=_always,
        statement="Where hardware cannot set R or C of a shadow leaf, the kernel sets it there "
        "and in L0's leaf for the page that L1's table leads to now. The shadow leaf may still "
        "lead to the previous page, and L0's leaf for that page does not get the bit.",
        source=f"kvmhv_handle_nested_set_rc in {_NESTED}",
        reference="present since nested page faults were handled (4.20)",
        breaks=("shadow-leaf-rc",),
        current=True,
        seen=False,
    ),
    Departure(
        id="rc-slot-not-aligned",
        rule="rc_gfn",
        does=_asked_gfn,
        statement="Ageing and dirty logging look for shadow leaves in the slot of the page that "
        "they are called for, but the entries are in the slot of the first page of L0's leaf.",
        source=f"kvm_age_radix and kvm_radix_test_clear_dirty in {_RADIX}",
        reference="present since R and C are kept in step (5.0)",
        breaks=("shadow-leaf-rc",),
        current=True,
        seen=False,
    ),
    Departure(
        id="freed-table-by-frame",
        rule="freed_address",
        does=_frame_as_address,
        statement="Where a large page takes the place of a table, each leaf left in the table is "
        "removed under the address of its host page instead of the guest address it translates.",
        source=f"kvmppc_unmap_free_pte and kvmppc_unmap_free_pmd in {_RADIX} (after a warning)",
        reference="present since tables are freed under large pages (4.18)",
        breaks=("cached-frame", "shadow-leaf-covered", "shadow-leaf-mapped"),
        current=True,
        seen=False,
    ),
    Departure(
        id="entry-refused-after-run",
        rule="result_written_back",
        does=_little_endian_only,
        statement="The kernel looks up the size of the state by its version after it has "
        "byte-swapped the version for a big-endian L1. The version is then unknown, and L1 gets "
        "H_AUTHORITY although L2 has run and its shadow leaves and rmap entries exist.",
        source=f"kvmhv_enter_nested_guest and kvmhv_write_guest_state_and_regs in {_NESTED}",
        reference="present in 6.12",
        breaks=("entry-reported",),
        current=True,
        seen=True,
    ),
    Departure(
        id="entry-at-exact-page",
        rule="slot_gfn",
        does=_exact_gfn,
        statement="An entry is put into the slot of the page that was touched, not into the slot "
        "of the first page of L0's leaf, where the kernel looks for it when it updates R and C.",
        source=f"__kvmhv_nested_page_fault in {_NESTED}",
        reference="fixed in 5.0: Align gfn to L1 page size when inserting nest-rmap entry",
        breaks=("rmap-slot",),
        current=False,
        seen=True,
    ),
    Departure(
        id="rc-not-combined",
        rule="rc_masked",
        does=_unmasked,
        statement="A new shadow leaf takes R and C from L0's leaf, whatever L1's entry has.",
        source=f"__kvmhv_nested_page_fault in {_NESTED}",
        reference="fixed in 5.0: Apply combination of host and l1 pte rc for nested guest",
        breaks=("shadow-leaf-rc",),
        current=False,
        seen=False,
    ),
    Departure(
        id="rc-not-followed",
        rule="rc_followed",
        does=_never,
        statement="Clearing R or C in L0's leaf leaves them set in the shadow leaves to its page.",
        source=f"kvm_age_radix and kvm_radix_test_clear_dirty in {_RADIX}",
        reference="fixed in 5.0: Keep rc bits in shadow pgtable in sync with host",
        breaks=("shadow-leaf-rc",),
        current=False,
        seen=False,
    ),
    Departure(
        id="only-first-page-unmapped",
        rule="unmapped_gfns",
        does=_first_only,
        statement="Of a range of guest pages that the host unmaps, only the first is unmapped.",
        source="kvm_unmap_gfn_range_hv in arch/powerpc/kvm/book3s_64_mmu_hv.c",
        reference="fixed in 5.13 by 32b48bf8514c",
        breaks=("host-leaf-backed",),
        current=False,
        seen=False,
    ),
    Departure(
        id="flush-all-uses-released-guest",
        rule="flush_all_holds_guest",
        does=_never,
        statement="A flush of all nested guests takes no reference to them; a guest that the "
        "flush itself releases is used afterwards.",
        source=f"kvmhv_emulate_tlbie_all_lpid in {_NESTED}",
        reference="fixed by 51938dfa8a51, which 6.12.107 does not have",
        breaks=("released-guest-unused",),
        current=True,
        seen=False,
    ),
)


def reading(departures: Iterable[Departure]) -> Rules:
    """Return the rules of a kernel that departs in these ways.

    Raises:
        ValueError: two departures replace the same rule.
    """
    every = list(departures)
    chosen = {departure.rule: departure.does for departure in every}
    if len(chosen) != len(every):
        raise ValueError("two departures replace the same rule")
    return dataclasses.replace(MUST_HOLD, **chosen)


AS_IT_IS = reading([departure for departure in DEPARTURES if departure.current])
"""The kernel as it is: Linux 6.12."""
