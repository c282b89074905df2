"""No page-table page is in two tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Vm
from inspector.memory.arrays import blocks, distinct, is_in
from inspector.memory.numbers import U64
from inspector.structures.radix import LeafTable

ID = "table-shared"
TABLE_SHIFT = np.uint64(8)
"""log2 of the smallest table's size in bytes: no two tables are in one piece of this size."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield, for each pair of trees that share a table, the first place that is in both.

    It is the address of a leaf, or of a table.
    """
    own = _tables(checked.vm)
    tables = [*own, *(table for vm in checked.others if not vm.locked for table in _tables(vm))]
    suspect = _in_twice([_pages(table) for _, table in tables])
    if not suspect.size:
        return
    parts = [_places(table, suspect) for _, table in tables]
    where = np.concatenate(parts)
    owner = np.repeat(np.arange(len(tables)), [part.size for part in parts])
    order = np.lexsort((owner, where))
    where, owner = where[order], owner[order]
    told: set[tuple[int, int]] = set()
    for row in np.flatnonzero(where[1:] == where[:-1]):
        pair = int(owner[row]), int(owner[row + 1])
        if pair[0] >= len(own) or pair in told or pair[0] == pair[1]:
            continue
        told.add(pair)
        name, table = tables[pair[0]]
        entry = _entry_at(table, where[row])
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"{name} and {tables[pair[1]][0]} share the page-table page at physical "
            f"{int(where[row]):#x}",
            expected="each page-table page in one table only",
            evidence=(Evidence("entry in both", "physical", int(where[row]), entry),),
        )


def _places(table: LeafTable, suspect: U64) -> U64:
    """Return the addresses of the leaves and tables of a tree that lie in ``suspect`` pieces."""
    every = np.concatenate((table.where, table.tables.table))
    return every[is_in(every >> TABLE_SHIFT, suspect)]


def _entry_at(table: LeafTable, where: np.uint64) -> int | None:
    """Return the leaf at an address, None if there is only the beginning of a table."""
    rows = np.flatnonzero(table.where == where)
    return int(table.entry[rows[0]]) if rows.size else None


def _pages(table: LeafTable) -> U64:
    """Return the pieces of memory with a leaf or the beginning of a table, each once."""
    found = [table.tables.table >> TABLE_SHIFT]
    for part in blocks(len(table)):
        pieces = table.where[part] >> TABLE_SHIFT
        # neighbouring leaves are mostly in the same piece: keep the first of each run
        first = np.ones(pieces.size, dtype=np.bool_)
        np.not_equal(pieces[1:], pieces[:-1], out=first[1:])
        found.append(pieces[first])
    return distinct(np.concatenate(found))


def _in_twice(pages: list[U64]) -> U64:
    every = np.sort(np.concatenate(pages))
    twice: U64 = every[1:][every[1:] == every[:-1]]
    return twice


def _tables(vm: Vm) -> list[tuple[str, LeafTable]]:
    return [(f"L0's table for VM {vm.lpid}", vm.host)] + [
        (f"the shadow table of L2 {nested.lpid} of VM {vm.lpid}", nested.shadow)
        for nested in vm.nested
    ]


INVARIANT = Invariant(
    id=ID,
    statement="No page-table page is part of two tables: L0's for a VM, or shadow tables.",
    why="A page mapped for one guest is mapped for the other too, and the table page is freed "
    "with the first of the two tables.",
    source="kvmppc_create_pte, kvmppc_free_pgtable_radix, kvmhv_alloc_nested",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
)
