"""No shadow leaf outlives its host page."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof import leaf_findings
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.vm import LeafState

ID = "shadow-leaf-mapped"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the shadow leaves whose host page no leaf of L0's table maps."""
    yield from leaf_findings(checked, ID, (LeafState.UNMAPPED,))


INVARIANT = Invariant(
    id=ID,
    statement="The host page of a shadow leaf is mapped by L0's own table for the L1 guest.",
    why="L0 clears its own leaf and the shadow leaves together; a shadow leaf without a leaf of "
    "L0 has outlived the page.",
    source="kvmppc_unmap_pte, kvm_unmap_radix",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
)
