"""Every list can be followed to its end."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Witness
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "rmap-list"

_TEXTS = {
    "pointer": (
        "the link {link:#018x} is neither an entry nor an aligned address of the linear map",
        "the address of a struct rmap_nested, or an entry with the single-entry bit",
    ),
    "nowhere": (
        "the link {link:#018x} leads to a place where the machine has no memory",
        "the address of a struct rmap_nested",
    ),
    "cycle": (
        "the list runs in a circle: the link {link:#018x} leads back into it",
        "a node that is not yet in the list, or an entry with the single-entry bit",
    ),
    "end": (
        "the list ends in a zero link instead of its oldest entry",
        "the oldest entry, with the single-entry bit, in the last next",
    ),
}


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the broken lists; a part of a list that could not be read is a gap, not a finding."""
    rmaps = checked.rmaps
    for problem in rmaps.problems:
        if problem.missing:
            continue
        slot = rmaps[problem.slot]
        text, expected = _TEXTS[problem.kind]
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"slot of gfn {slot.gfn:#x}, after {len(slot.words)} entries: "
            + text.format(link=problem.link),
            expected=expected,
            evidence=(
                Evidence("slot", "kernel", slot.where, slot.head),
                Evidence("word at fault", "kernel", problem.place, problem.link),
            ),
        )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield the links of lists; nothing confirms them, because a list has no back links."""
    yield Witness("links of lists", int(np.count_nonzero(checked.rmaps.node)), 0, "none")


INVARIANT = Invariant(
    id=ID,
    statement="A slot is zero, one entry, or the address of a list. The nodes of a list lie in "
    "the linear map, none is met twice, and the last link is the oldest entry.",
    why="The kernel follows and frees these links without checks; a bad link means lost entries, a "
    "use after free or an endless loop under mmu_lock.",
    source="kvmhv_insert_nest_rmap, kvmhv_remove_nest_rmap_list",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS}),
    rests=rests,
)
