"""No shadow leaf permits an access that L0's leaf does not permit."""

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

ID = "shadow-leaf-permission"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves with a permission that no leaf of L0 they can be made of has."""
    yield from rights_findings(checked, ID, _rows, _told)


def _rows(rights: Rights) -> NDArray[np.bool_]:
    wide: NDArray[np.bool_] = (rights.permissions != 0) | rights.attributes
    return wide


def _told(leaf: Leaf, judgement: RightsJudgement) -> tuple[str, str]:
    wide = judgement.excess.permissions
    if wide:
        return f"it permits {pte.permissions(wide)}, which L0's leaf does not", (
            f"no more than {pte.permissions(leaf.entry & ~wide)}"
        )
    return "its cache attribute or PRIV bit is not that of L0's leaf", ("bits 0x38 as in L0's leaf")


INVARIANT = Invariant(
    id=ID,
    statement="A shadow leaf permits no reading, writing or executing that L0's leaf for its host "
    "page does not permit, and has the same cache attribute and PRIV bit.",
    why="L0 maps a page read-only if others share it: an L2 guest that may write to it changes "
    "the memory of others. L0's leaf never loses a permission while it exists.",
    source="__kvmhv_nested_page_fault (step 3), kvmppc_create_pte (PTE_BITS_MUST_MATCH)",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
    needs=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST}),
)
