"""The tables that L0 builds are well-formed radix trees."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Witness
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "table-form"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield malformed parts of L0's table and of the shadow tables."""
    for name, table in checked.tables:
        for problem in table.problems:
            if not problem.missing:
                yield Finding(
                    invariant=ID,
                    vm_lpid=checked.vm.lpid,
                    summary=f"{name}, from address {problem.address:#x}: {problem.text}",
                    expected="tables aligned to their size, of the width their level has, each "
                    "reached once; leaves aligned to theirs; other entries zero",
                    evidence=(
                        Evidence(
                            "table" if problem.entry is None else "entry",
                            "physical",
                            problem.where,
                            problem.entry,
                        ),
                    ),
                )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield the entries that lead from table to table; nothing confirms them."""
    count = sum(int(np.count_nonzero(table.tables.above)) for _, table in checked.tables)
    yield Witness("entries that lead to tables", count, 0, "none")


INVARIANT = Invariant(
    id=ID,
    statement="L0's table for the guest and the shadow tables are well-formed radix trees of the "
    "sizes that this kernel uses: 13, 9, 9 and 9 bits, or 5 at the last level where it has pages "
    "of 64 KiB. An entry that is not valid is zero.",
    why="The hardware also walks a table that is reached twice or has a wrong form. The hardware "
    "takes the width of a table from the entry above it, and the kernel assumes it: where they "
    "differ, the hardware and the kernel see different mappings. The kernel takes an entry that is "
    "not zero for one that maps a page.",
    source="kvmppc_create_pte, kvmppc_unmap_pte, kvmppc_unmap_free_pte, Power ISA 3.0B Book III "
    "5.7.10",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
    rests=rests,
)
