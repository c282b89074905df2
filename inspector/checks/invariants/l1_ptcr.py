"""The partition table of L1 that L0 remembers is no larger than KVM accepts."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof_words import member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.model.partition import MAX_SIZE_FIELD, PTCR_SIZE_MASK

ID = "l1-ptcr"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the VM if L1's partition table is larger than KVM accepts."""
    size = checked.vm.l1_ptcr & PTCR_SIZE_MASK
    if size > MAX_SIZE_FIELD:
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"L1's partition table has a size field of {size}",
            expected=f"at most {MAX_SIZE_FIELD}, which is 4096 LPIDs: L0 refuses a larger table",
            evidence=(member("struct kvm", checked.vm, "l1_ptcr"),),
        )


INVARIANT = Invariant(
    id=ID,
    statement="L1's partition table, as L0 remembers it, has no more than 4096 entries.",
    why="Its size bounds the LPIDs for which L0 makes nested guests, and an rmap word has 12 bits "
    "for an LPID: a larger LPID would be mistaken for another guest's.",
    source="kvmhv_set_partition_table, kvmhv_get_nested",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.NESTED}),
)
