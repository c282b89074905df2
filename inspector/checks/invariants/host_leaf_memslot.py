"""L0 maps only pages that are in a memslot."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Witness, disagreement
from inspector.checks.proof_words import member
from inspector.checks.view import CheckedVm, leaf_at
from inspector.kvm.snapshot import Part
from inspector.model.memslots import holder
from inspector.model.parts import READ_ONLY

ID = "host-leaf-memslot"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield L0's leaves that no memslot holds whole, and writable ones in read-only memslots."""
    host, shift = checked.vm.host, checked.page_shift
    for row in np.flatnonzero(~checked.in_memslot):
        leaf = leaf_at(host, int(row))
        gfn = leaf.address >> shift
        if holder(checked.vm.memslots, leaf, shift) is not None:
            where = Evidence("L0's leaf", "physical", int(host.where[row]), leaf.entry)
            yield disagreement(ID, checked.vm.lpid, f"L0's leaf for gfn {gfn:#x}", where)
            continue
        touched = [
            slot
            for slot in checked.vm.memslots
            if (slot.base_gfn << shift) < leaf.address + leaf.size
            and leaf.address < ((slot.base_gfn + slot.npages) << shift)
        ]
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"L0's leaf for gfn {gfn:#x} ({pte.size_name(leaf.shift)}) "
            + ("reaches beyond a memslot" if touched else "is in no memslot"),
            expected="one memslot that holds all of the leaf",
            evidence=(
                Evidence(
                    "L0's leaf",
                    "physical",
                    int(host.where[row]),
                    leaf.entry,
                    f"L1 {leaf.address:#x} -> {pte.describe(leaf.entry, leaf.shift)}",
                ),
                *(
                    member(f"memslot {slot.id}", slot, name)
                    for slot in touched
                    for name in ("base_gfn", "npages")
                ),
            ),
        )

    for slot in checked.vm.memslots:
        if slot.flags & READ_ONLY:
            inside = (host.address >> np.uint64(shift)) - np.uint64(slot.base_gfn)
            written = (host.entry & np.uint64(pte.WRITE)) != 0
            for row in np.flatnonzero((inside < np.uint64(slot.npages)) & written):
                leaf = leaf_at(host, int(row))
                yield Finding(
                    invariant=ID,
                    vm_lpid=checked.vm.lpid,
                    summary=f"L0's leaf for gfn {leaf.address >> shift:#x} permits writing in "
                    f"memslot {slot.id}, which is read-only",
                    expected="a leaf that permits no writing",
                    evidence=(
                        Evidence(
                            "L0's leaf",
                            "physical",
                            int(host.where[row]),
                            leaf.entry,
                            f"L1 {leaf.address:#x} -> {pte.describe(leaf.entry, leaf.shift)}",
                        ),
                        member(f"memslot {slot.id}", slot, "flags"),
                    ),
                )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield the number of L0's leaves, and how many of them a live entry joins to a shadow leaf."""
    made = np.zeros(len(checked.vm.host), dtype=np.bool_)
    made[checked.host_leaf(np.flatnonzero(checked.live))] = True
    yield Witness("leaves of L0's tables", made.size, int(np.count_nonzero(made)), "a shadow leaf")


INVARIANT = Invariant(
    id=ID,
    statement="Every leaf of L0's table for the guest lies entirely in one memslot, and permits "
    "no writing if the memslot is read-only.",
    why="When the leaf goes away, the kernel empties the rmap slots of all its pages: the slots of "
    "pages before or after the memslot are no part of the array. A leaf in no memslot is never "
    "removed.",
    source="kvmppc_book3s_instantiate_page, kvmhv_remove_nest_rmap_range, "
    "kvmppc_radix_flush_memslot",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.HOST}),
    needs=frozenset({Part.MEMSLOTS}),
    rests=rests,
)
