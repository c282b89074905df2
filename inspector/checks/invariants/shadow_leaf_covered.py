"""L0 finds every shadow leaf again through an rmap entry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Rest, Severity, Witness
from inspector.checks.proof import leaf_findings
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.vm import LeafState

ID = "shadow-leaf-covered"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves to which no entry leads from a slot that L0 consults."""
    yield from leaf_findings(checked, ID, (LeafState.LOST, LeafState.HIDDEN))


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many shadow leaves an entry leads to."""
    covered = sum(int(np.count_nonzero(rights.covered)) for rights in checked.rights)
    leaves = sum(len(nested.shadow) for nested in checked.vm.nested)
    yield Witness("shadow leaves", leaves, covered, "an rmap entry that the kernel's walk meets")


INVARIANT = Invariant(
    id=ID,
    statement="Every present shadow leaf has an entry, met by the kernel's own walk, in a slot "
    "that L0 empties when it takes the leaf's host page away.",
    why="Without it the shadow leaf outlives the page: an L2 guest keeps access to memory that the "
    "host has given to another user.",
    source="kvmppc_unmap_pte, kvmhv_remove_nest_rmap_range, for_each_nest_rmap_safe",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
    rests=rests,
)
