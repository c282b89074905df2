"""All containers of memslots hold the same memslots."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.proof_words import member, mismatch_findings, shown_word
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Memslot, Part

ID = "memslot-index"

KNOWN_FLAGS = 0x3_0007
"""LOG_DIRTY_PAGES, READONLY and GUEST_MEMFD, and the flags that KVM uses internally: INVALID and
GMEM_ONLY (include/uapi/linux/kvm.h, include/linux/kvm_host.h)."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the disagreements between containers, and the memslots that KVM cannot have made."""
    vm = checked.vm
    yield from mismatch_findings(ID, vm.lpid, vm.memslot_words.mismatches)
    by_id: dict[int, Memslot] = {}
    for slot in vm.memslots:
        first = by_id.setdefault(slot.id, slot)
        if first is not slot:
            yield Finding(
                invariant=ID,
                vm_lpid=vm.lpid,
                summary=f"two memslots have the id {slot.id}",
                expected="an id of its own for each: user space changes and removes a memslot by "
                "its id",
                evidence=tuple(
                    member(f"memslot at {one.address:#x}", one, name)
                    for one in (first, slot)
                    for name in ("id", "base_gfn")
                ),
            )
        yield from _slot(vm.lpid, slot)
    yield from _pages(checked)


def _slot(lpid: int, slot: Memslot) -> Iterator[Finding]:
    if not slot.npages:
        yield Finding(
            invariant=ID,
            vm_lpid=lpid,
            summary=f"memslot {slot.id} at gfn {slot.base_gfn:#x} has no pages",
            expected="at least one page: a memslot without any is removed",
            evidence=(member(f"memslot {slot.id}", slot, "npages"),),
        )
    if slot.as_id:
        yield Finding(
            invariant=ID,
            vm_lpid=lpid,
            summary=f"memslot {slot.id} says that it belongs to address space {slot.as_id}",
            expected="0, in which it was found; this architecture has no other",
            evidence=(
                Evidence(f"memslot {slot.id}, its as_id {slot.as_id}", "kernel", slot.address),
            ),
        )
    unknown = slot.flags & ~KNOWN_FLAGS
    if unknown:
        yield Finding(
            invariant=ID,
            vm_lpid=lpid,
            summary=f"memslot {slot.id} has the unknown flags {unknown:#x}",
            expected=f"flags among {KNOWN_FLAGS:#x}",
            evidence=(member(f"memslot {slot.id}", slot, "flags"),),
            doubt="a kernel that is newer than this version of the tool may have more flags",
        )


def _pages(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the VM if its number of pages is not that of its memslots."""
    vm = checked.vm
    total = vm.members.get("nr_memslot_pages")
    found = sum(slot.npages for slot in vm.memslots)
    if total is None or total.value == found or any(g.part is Part.MEMSLOTS for g in vm.gaps):
        return
    lock = vm.member("slots_lock.owner")
    if lock:
        # The new memslots are in use before kvm_commit_memory_region counts their pages.
        return
    yield Finding(
        invariant=ID,
        vm_lpid=vm.lpid,
        summary=f"the memslots have {found} pages, and the VM counts {total.value}",
        expected="the same number",
        evidence=(
            shown_word(total),
            *(member(f"memslot {slot.id}", slot, "npages") for slot in vm.memslots),
        ),
        doubt="" if lock == 0 else "a memslot may be being added or removed",
    )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many words of the containers a second word confirms."""
    words = checked.vm.memslot_words
    yield Witness(
        "ways to memslots", words.words, words.confirmed, "parents, pprev, and the other ways"
    )
    for why in words.missing:
        yield Unjudged("whether all ways to the memslots agree", why)
    total = checked.vm.member("nr_memslot_pages")
    if total is None:
        yield Unjudged("whether all memslots were found", "there is no nr_memslot_pages")
        return
    pages = sum(slot.npages for slot in checked.vm.memslots)
    if pages != total and checked.vm.member("slots_lock.owner"):
        yield Unjudged(
            "whether all memslots were found", "slots_lock is held: their pages are being counted"
        )
    else:
        yield Witness("numbers of memslot pages", 1, int(total == pages), "nr_memslot_pages")


INVARIANT = Invariant(
    id=ID,
    statement="The tree of memslots by gfn, the tree by address and the hash by id, or the array "
    "and its index, are in the order in which the kernel searches, and have the same memslots. "
    "Each memslot has an id of its own, pages, and known flags.",
    why="Each search of the kernel uses only one of these containers: a memslot that another does "
    "not have is unmapped in one place and stays mapped in another.",
    source="search_memslots, kvm_replace_memslot, kvm_insert_gfn_node, id_to_memslot, "
    "kvm_commit_memory_region",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS}),
    rests=rests,
)
