"""No shadow leaf is larger than L0's leaf."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof import rights_findings
from inspector.checks.rights import Rights
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.rights import RightsJudgement
from inspector.model.vm import Leaf

ID = "shadow-leaf-size"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves that are larger than every leaf of L0 they can be made of."""
    yield from rights_findings(checked, ID, _rows, _told)


def _rows(rights: Rights) -> NDArray[np.bool_]:
    return rights.larger


def _told(leaf: Leaf, judgement: RightsJudgement) -> tuple[str, str]:
    largest = pte.size_name(max(source.shift for source in judgement.sources))
    return f"L0's leaf has only {largest}", f"a leaf of {largest} or less"


INVARIANT = Invariant(
    id=ID,
    statement="A shadow leaf is no larger than L0's leaf for its host page.",
    why="The part beyond L0's leaf maps memory of the host that L0 has not mapped to the L1 "
    "guest, and that no rmap entry names.",
    source="__kvmhv_nested_page_fault (step 3)",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
)
