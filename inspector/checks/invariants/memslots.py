"""Memslots do not overlap, and each has an rmap array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof_words import member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Memslot, Part
from inspector.regions import VMALLOC, VMALLOC_END

ID = "memslots"
WORD = 8
USER_END = 1 << pte.TREE_BITS
"""The end of a process's address space (TASK_SIZE_USER64)."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield memslots and rmap arrays that overlap, and wrong addresses of either."""
    slots = sorted(checked.vm.memslots, key=lambda slot: slot.base_gfn)
    for before, slot in itertools.pairwise(slots):
        if before.base_gfn + before.npages > slot.base_gfn:
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{_named(before)} and {_named(slot)} overlap",
                expected="each gfn in one memslot",
                evidence=tuple(
                    member(f"memslot {one.id}", one, name)
                    for one in (before, slot)
                    for name in ("base_gfn", "npages")
                ),
            )
    for slot in slots:
        if not _vmalloced(slot, 1 << checked.page_shift):
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{_named(slot)} has {'no' if not slot.rmap else 'a misplaced'} rmap array",
                expected="an array with a word for each page, at the beginning of a page in "
                "vmalloc space, made together with the memslot",
                evidence=(member(f"memslot {slot.id}", slot, "rmap"),),
            )
        size = slot.npages << checked.page_shift
        if slot.userspace_addr % (1 << checked.page_shift) or slot.userspace_addr + size > USER_END:
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{_named(slot)} is at {slot.userspace_addr:#x} of the VM's process",
                expected=f"the beginning of a page, and all of it below {USER_END:#x}",
                evidence=(member(f"memslot {slot.id}", slot, "userspace_addr"),),
            )
    slots = sorted((slot for slot in slots if slot.rmap), key=lambda slot: slot.rmap)
    for before, slot in itertools.pairwise(slots):
        if before.rmap + WORD * before.npages > slot.rmap:
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"the rmap arrays of {_named(before)} and {_named(slot)} overlap",
                expected="each array on pages of its own",
                evidence=(
                    member(f"memslot {before.id}", before, "rmap"),
                    member(f"memslot {before.id}", before, "npages"),
                    member(f"memslot {slot.id}", slot, "rmap"),
                ),
            )


def _vmalloced(slot: Memslot, page_size: int) -> bool:
    return slot.rmap % page_size == 0 and VMALLOC <= slot.rmap < VMALLOC_END


def _named(slot: Memslot) -> str:
    return f"memslot {slot.id} (gfn {slot.base_gfn:#x} to {slot.base_gfn + slot.npages - 1:#x})"


INVARIANT = Invariant(
    id=ID,
    statement="No gfn is in two memslots of a VM, and every memslot has pages of the VM's process "
    "and its own rmap array.",
    why="The kernel looks a gfn up in one memslot: entries in another one's array are never found. "
    "The kernel writes to an array even if it is not there, and the words of an array that two "
    "memslots share belong to neither.",
    source="kvm_set_memslot, kvmppc_core_prepare_memory_region_hv",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.MEMSLOTS}),
)
