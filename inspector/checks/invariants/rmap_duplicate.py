"""No entry is in a slot twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector import encoding
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "rmap-duplicate"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield entries that the kernel's walk meets twice in one slot."""
    rmaps = checked.rmaps
    rows = np.flatnonzero(checked.reachable & np.repeat(rmaps.length > 1, rmaps.length))
    key = encoding.identity(rmaps.word[rows])
    slot = checked.slot_of[rows]
    # sorted by slot, then by entry: duplicates are neighbours
    order = np.lexsort((key, slot))
    same = (key[order][1:] == key[order][:-1]) & (slot[order][1:] == slot[order][:-1])
    for position in np.flatnonzero(same):
        first, second = int(rows[order[position]]), int(rows[order[position + 1]])
        holder = rmaps[int(checked.slot_of[first])]
        entry = encoding.decode(int(rmaps.word[first]))
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"the entry for L2 {entry.lpid}:{entry.gpa:#x} is twice in the slot of gfn "
            f"{holder.gfn:#x}",
            expected="each entry once: an insertion looks for it first",
            evidence=(
                Evidence("slot", "kernel", holder.where, holder.head),
                *(
                    Evidence(
                        "entry",
                        "kernel",
                        int(rmaps.place[row]),
                        int(rmaps.word[row]),
                        f"entry {row - int(rmaps.start[checked.slot_of[row]])}",
                    )
                    for row in (first, second)
                ),
            ),
        )


INVARIANT = Invariant(
    id=ID,
    statement="No slot holds the same LPID and L2 page twice among the entries that the kernel's "
    "walk meets.",
    why="An insertion looks for the entry first, so a second one was not inserted by the kernel.",
    source="kvmhv_insert_nest_rmap, kvmhv_n_rmap_is_equal",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS}),
)
