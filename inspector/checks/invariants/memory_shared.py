"""No two things lie in the same memory."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Severity
from inspector.checks.known import Thing
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "memory-shared"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the first overlap of each pair of owners, with the number of the others."""
    if checked.whole is None:
        return
    pairs: dict[tuple[str, str], list[tuple[Thing, Thing]]] = {}
    for first, second in checked.whole.known.overlaps:
        if checked.vm.address in (first.group.vm, second.group.vm):
            pairs.setdefault((first.group.what, second.group.what), []).append((first, second))
    for (one, other), found in pairs.items():
        first, second = found[0]
        places = f" and in {len(found) - 1} other places" if len(found) > 1 else ""
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"{one} and {other} both lie at physical {second.begin:#x}{places}",
            expected="memory of its own for each",
            evidence=(first.evidence, second.evidence),
        )


INVARIANT = Invariant(
    id=ID,
    statement="No two of these overlap in physical memory, whichever VM they belong to: page "
    "tables, the partition table, struct kvm, memslots, nested guests, rmap arrays, list nodes, "
    "the kernel's image.",
    why="A write to one changes the other: an entry of one VM's rmap becomes another's, a "
    "list node becomes a translation. When one is freed, the other is freed with it.",
    source="kvmppc_core_prepare_memory_region_hv, kvmppc_create_pte, kvmhv_alloc_nested, "
    "kvmhv_insert_nest_rmap",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS, Part.HOST, Part.NESTED, Part.SHADOW}),
)
