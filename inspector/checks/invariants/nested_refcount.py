"""A nested guest that can be found has a plausible number of references."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.proof_words import member, shown_word
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "nested-refcount"
SIGN = 1 << 63
USERS = 1 << 16
"""More references than vCPUs, which hold one each, and readers of debugfs can hold."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the nested guests whose reference count is not positive, or too large."""
    vcpus = checked.vm.member("created_vcpus")
    for nested in checked.vm.nested:
        if not 0 < nested.refcnt < USERS:
            count = nested.refcnt - (2 * SIGN if nested.refcnt >= SIGN else 0)
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"nested guest {nested.lpid} has {count} references",
                expected="1 for being in the container, and 1 for each user",
                evidence=(member("struct kvm_nested_guest", nested, "refcnt"),),
            )
        elif vcpus is not None and nested.refcnt > 1 + vcpus:
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"nested guest {nested.lpid} has {nested.refcnt} references, and the VM "
                f"{vcpus} vCPUs",
                expected="1 for being in the container, and at most 1 for each vCPU",
                evidence=(
                    member("struct kvm_nested_guest", nested, "refcnt"),
                    shown_word(checked.vm.members["created_vcpus"]),
                ),
                doubt="each reader of the guest's tables in debugfs holds a reference too",
            )


INVARIANT = Invariant(
    id=ID,
    statement="A nested guest that is found under an LPID has at least one reference, and no more "
    "than one for each vCPU besides.",
    why="Dropping the last reference frees the guest: a guest without references is freed, or "
    "will be while it is in use. A guest with more references than it can have users is never "
    "freed, or its count went below zero.",
    source="kvmhv_get_nested, kvmhv_put_nested, kvmhv_remove_nested",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED}),
)
