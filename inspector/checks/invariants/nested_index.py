"""The container of nested guests leads to every nested guest of the VM, and to no other."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.proof_words import member, mismatch_findings
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Nested, Part

ID = "nested-index"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield words of the container that disagree, and guests that should not be in it."""
    vm = checked.vm
    yield from mismatch_findings(ID, vm.lpid, vm.nested_words.mismatches)
    by_address: dict[int, Nested] = {}
    for nested in vm.nested:
        first = by_address.setdefault(nested.address, nested)
        if first is not nested:
            yield Finding(
                invariant=ID,
                vm_lpid=vm.lpid,
                summary=f"one nested guest is found under the LPIDs {first.lpid} and {nested.lpid}",
                expected="each nested guest under one LPID",
                evidence=(
                    member(f"struct kvm_nested_guest at {nested.address:#x}", nested, "l1_lpid"),
                ),
            )
        if nested.l1_host not in (None, vm.address):
            yield Finding(
                invariant=ID,
                vm_lpid=vm.lpid,
                summary=f"nested guest {nested.lpid} belongs to the VM at {nested.l1_host:#x}",
                expected=f"the VM at {vm.address:#x}, in which it was found",
                evidence=(member("struct kvm_nested_guest", nested, "l1_host"),),
            )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many entries of the container a second word confirms."""
    words = checked.vm.nested_words
    yield Witness(
        "entries of the container of nested guests",
        words.words,
        words.confirmed,
        "marks, counts and parents of its nodes, or max_nested_lpid",
    )
    for why in words.missing:
        yield Unjudged("whether all nested guests were found", why)
    nested = checked.vm.nested
    told = sum(one.l1_host is not None for one in nested)
    if nested:
        yield Witness("nested guests", len(nested), told, "l1_host")
    if told < len(nested):
        yield Unjudged("whose nested guests they are", "l1_host is missing")


INVARIANT = Invariant(
    id=ID,
    statement="The idr of nested guests holds pointers to nested guests of this VM, one for each "
    "LPID that it marks as taken, in nodes that agree on their places; in an array, "
    "max_nested_lpid is the last entry in use.",
    why="L0 finds a nested guest in no other way: if it does not find one, the leaves of that "
    "guest stay when the host page goes away.",
    source="kvmhv_get_nested, __find_nested, kvmhv_remove_nested, idr_find, idr_alloc, "
    "radix_tree_extend",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED}),
    rests=rests,
)
