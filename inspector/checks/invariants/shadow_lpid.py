"""No two guests run under one LPID."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.proof_words import member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Vm

ID = "shadow-lpid"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the LPIDs of this VM and its nested guests that are invalid or not theirs alone."""
    every = [user for vm in (checked.vm, *checked.others) for user in _users(vm)]
    for lpid, name, evidence in _users(checked.vm):
        same = [user for user in every if user[0] == lpid]
        if not 0 < lpid < pte.PARTITION_ENTRIES or len(same) > 1:
            others = [user for user in same if user[1] != name]
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{name} runs under LPID {lpid}, "
                + ("as does " if others or not lpid else "")
                + (", ".join(user[1] for user in others) or _nobody(lpid)),
                expected=f"an LPID of its own, above 0 and below {pte.PARTITION_ENTRIES}",
                evidence=(evidence, *(user[2] for user in others)),
            )


def _nobody(lpid: int) -> str:
    return "which the hardware does not have" if lpid else "the host itself"


def _users(vm: Vm) -> list[tuple[int, str, Evidence]]:
    """Return every LPID that a VM and its nested guests run under, its owner, and its word."""
    return [(vm.lpid, f"the VM at {vm.address:#x}", member("struct kvm", vm, "lpid"))] + [
        (
            nested.shadow_lpid,
            f"nested guest {nested.lpid} of the VM at {vm.address:#x}",
            member("struct kvm_nested_guest", nested, "shadow_lpid"),
        )
        for nested in vm.nested
    ]


INVARIANT = Invariant(
    id=ID,
    statement="Every VM and every nested guest of the host runs under its own LPID, which has 12 "
    "bits and is not 0.",
    why="The hardware keeps translations by LPID: guests that share one use each other's memory. "
    "The partition table has 4096 entries.",
    source="kvmppc_alloc_lpid, kvmhv_alloc_nested, kvmhv_release_nested",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED}),
)
