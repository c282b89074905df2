"""Every nested guest is found under its own LPID."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import encoding
from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof_words import member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "nested-lpid"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield nested guests found under another LPID, and those whose LPID no entry can hold."""
    for nested in checked.vm.nested:
        if nested.l1_lpid != nested.lpid or nested.lpid > encoding.MAX_LPID:
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"the nested guest found under LPID {nested.lpid} has l1_lpid "
                f"{nested.l1_lpid}",
                expected=f"the same LPID, of at most {encoding.MAX_LPID}",
                evidence=(
                    member(
                        "struct kvm_nested_guest",
                        nested,
                        "l1_lpid",
                        f"at {nested.address:#x}, found under {nested.lpid}",
                    ),
                ),
            )


INVARIANT = Invariant(
    id=ID,
    statement="The l1_lpid of a nested guest is the LPID it is found under, and fits into an rmap "
    "word.",
    why="Insertion writes l1_lpid into the word, and removal looks the guest up by the LPID in the "
    "word: it would clear another guest's leaf, and leave this one's.",
    source="kvmhv_alloc_nested, __kvmhv_nested_page_fault, kvmhv_remove_nest_rmap",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED}),
)
