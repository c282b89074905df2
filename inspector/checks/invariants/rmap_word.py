"""Every word has a form that the kernel writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector import encoding
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Witness
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.memory.arrays import blocks

ID = "rmap-word"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield words with reserved bits set or with the single-entry bit in the wrong place."""
    rmaps = checked.rmaps
    zero = np.uint64(encoding.RESERVED_MASK | (encoding.GPA_MASK & ((1 << checked.page_shift) - 1)))
    wrong = np.empty(rmaps.word.size, dtype=np.bool_)
    for part in blocks(wrong.size):
        words = rmaps.word[part]
        single = encoding.is_single(words) != 0
        # wrong if the single-entry bit is set in a node, or clear outside of one
        wrong[part] = ((words & zero) != 0) | (single == (rmaps.node[part] != 0))
    for row in np.flatnonzero(wrong):
        word, node = int(rmaps.word[row]), int(rmaps.node[row])
        slot = rmaps[int(checked.slot_of[row])]
        entry = encoding.decode(word)
        page = entry.gpa & -(1 << checked.page_shift)
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"word {word:#018x} in the slot of gfn {slot.gfn:#x}: "
            + "; ".join(encoding.problems(word, in_node=bool(node), page_shift=checked.page_shift)),
            expected=f"{encoding.encode(entry.lpid, page, single=not node):#018x} for L2 "
            f"{entry.lpid}:{page:#x}",
            evidence=(
                Evidence("slot", "kernel", slot.where, slot.head),
                Evidence(
                    "list node" if node else "slot or last next",
                    "kernel",
                    int(rmaps.place[row]),
                    word,
                ),
            ),
        )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many entries lead to a shadow leaf."""
    live = int(np.count_nonzero(checked.live))
    yield Witness("rmap entries", checked.rmaps.word.size, live, "the shadow leaf that they name")


INVARIANT = Invariant(
    id=ID,
    statement="Bits 11 to 1 of an entry are zero, 15 to 12 too where L0 has pages of 64 KiB, and "
    "bit 0 is set if and only if the entry is not in a list node.",
    why="An insertion aligns the L2 address to the shadow leaf, which is no smaller than a page. "
    "The kernel takes bit 0 for the end of a list; if it is wrong, the list is cut or an entry is "
    "taken for a pointer.",
    source="RMAP_NESTED_* in kvm_book3s_64.h, __kvmhv_nested_page_fault, kvmhv_insert_nest_rmap",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS}),
    rests=rests,
)
