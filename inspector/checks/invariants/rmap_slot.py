"""Live entries are in the slots where ageing and dirty logging look for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector import encoding
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity, disagreement
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.rights import misplaced

ID = "rmap-slot"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the live entries in the slot of a later page of L0's leaf than its first."""
    for row in np.flatnonzero(checked.misplaced):
        slot = checked.rmaps[int(checked.slot_of[row])]
        word = int(checked.rmaps.word[row])
        first = misplaced(checked.model, slot.gfn, word)
        entry = encoding.decode(word)
        if first is None:
            place = int(checked.rmaps.place[row])
            of = f"the entry for L2 {entry.lpid}:{entry.gpa:#x} in the slot of gfn {slot.gfn:#x}"
            yield disagreement(ID, checked.vm.lpid, of, Evidence("entry", "kernel", place, word))
            continue
        leaf = int(checked.host_leaf(np.array([row]))[0])
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"the live entry for L2 {entry.lpid}:{entry.gpa:#x} is in the slot of gfn "
            f"{slot.gfn:#x}, inside a huge page of L0",
            expected=f"the entry in the slot of gfn {first:#x}, the first page of L0's leaf",
            evidence=(
                Evidence("entry", "kernel", int(checked.rmaps.place[row]), word),
                Evidence("slot", "kernel", slot.where, slot.head),
                Evidence(
                    "L0's leaf",
                    "physical",
                    int(checked.vm.host.where[leaf]),
                    int(checked.vm.host.entry[leaf]),
                    f"maps from gfn {first:#x} on",
                ),
            ),
        )


INVARIANT = Invariant(
    id=ID,
    statement="A live entry is in the slot of the first page of L0's leaf for its host page.",
    why="Removal empties the slots of all pages in the leaf, but ageing and dirty logging look "
    "only into the first: if the entry is elsewhere, they do not notice that an L2 guest uses the "
    "page.",
    source="__kvmhv_nested_page_fault (the gfn is aligned), kvm_age_radix, "
    "kvm_radix_test_clear_dirty",
    severity=Severity.BOOKKEEPING,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
    commit="Align gfn to L1 page size when inserting nest-rmap entry",
)
