"""Shadow leaves agree with L1's table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.base import Invariant, Passing
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof import rights_findings
from inspector.checks.rights import Rights
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.rights import L1State, RightsJudgement
from inspector.model.vm import Leaf

ID = "shadow-leaf-l1"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the covered leaves that lead elsewhere, or permit more, than L1's table."""
    yield from rights_findings(checked, ID, _rows, _told)


def _count(checked: CheckedVm) -> int:
    return checked.pending


def _rows(rights: Rights) -> NDArray[np.bool_]:
    return rights.l1_differs


def _told(leaf: Leaf, judgement: RightsJudgement) -> tuple[str, str]:
    state, l1 = judgement.l1_state, judgement.l1
    expected = "no shadow leaf, or one that leads where L1's table leads"
    if state is L1State.LARGER and l1 is not None:
        expected = f"a leaf of {pte.size_name(l1.shift)} or less"
    elif state is L1State.WIDER and l1 is not None:
        expected = f"no more than {pte.permissions(l1.entry)}"
    return state.value, expected


INVARIANT = Invariant(
    id=ID,
    statement="A shadow leaf leads where L1's table and then L0's lead, is no larger than L1's "
    "leaf, and permits no more.",
    why="Until L1 invalidates, the nested guest keeps the access that L1 has taken from it.",
    source="__kvmhv_nested_page_fault (steps 1 to 3), kvmhv_invalidate_shadow_pte",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW, Part.L1}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
    passing=Passing("L1 may have changed its table and not yet invalidated", _count),
)
