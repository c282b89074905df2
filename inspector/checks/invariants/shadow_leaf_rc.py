"""Shadow leaves have R and C set only where L0's and L1's leaves have."""

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
from inspector.model.rights import RightsJudgement
from inspector.model.vm import Leaf

ID = "shadow-leaf-rc"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves with R or C set where L0's or L1's leaf has it clear."""
    yield from rights_findings(checked, ID, _rows, _told)


def _count(checked: CheckedVm) -> int:
    return sum(int(np.count_nonzero(_rows(rights))) for rights in checked.rights)


def _rows(rights: Rights) -> NDArray[np.bool_]:
    wide: NDArray[np.bool_] = (rights.recorded != 0) | (rights.l1_recorded != 0)
    return wide


def _told(leaf: Leaf, judgement: RightsJudgement) -> tuple[str, str]:
    parts = [
        f"{pte.recorded(bits)} set, and clear in {whose} leaf"
        for whose, bits in (
            ("L0's", judgement.excess.recorded),
            ("L1's", judgement.l1_recorded),
        )
        if bits
    ]
    clear = judgement.excess.recorded | judgement.l1_recorded
    return "; ".join(parts), f"{pte.recorded(clear)} clear: both leaves must have a bit set"


INVARIANT = Invariant(
    id=ID,
    statement="A shadow leaf has R or C set only if both L0's leaf and L1's leaf have it set.",
    why="Otherwise a use of the page by the L2 guest is not noticed: ageing takes a page in use "
    "for unused, and dirty logging misses a write.",
    source="__kvmhv_nested_page_fault (step 3), kvmhv_handle_nested_set_rc, "
    "kvmhv_update_nest_rmap_rc",
    severity=Severity.BOOKKEEPING,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW, Part.L1}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
    passing=Passing(
        "hardware may set R and C in the shadow leaf by itself, L1 may have cleared its own, and "
        "a fault may have read L0's leaf before ageing or dirty logging cleared a bit in it",
        _count,
    ),
    commit="Keep rc bits in shadow pgtable in sync with host",
)
