"""Every shadow leaf leads where L1's and L0's tables lead."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof import leaf_findings
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.vm import LeafState

ID = "shadow-leaf-frame"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves whose entry is in the slot that L1 and L0 imply, but whose frame is not."""
    yield from leaf_findings(checked, ID, (LeafState.MOVED,))


INVARIANT = Invariant(
    id=ID,
    statement="The frame of a shadow leaf is L0(L1(L2 address)), unless L1 has changed its table "
    "and not yet invalidated; then the leaf is still covered at the page it leads to.",
    why="A wrong frame gives an L2 guest memory that is not its own.",
    source="__kvmhv_nested_page_fault (steps 1 to 3)",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW, Part.L1}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
)
