"""Page-table entries have the bits that KVM writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part
from inspector.memory.arrays import blocks
from inspector.memory.numbers import U64
from inspector.structures.radix import LeafTable

ID = "entry-bits"
RESERVED = np.uint64(pte.RESERVED | pte.PRIVILEGED)
UPPER = np.uint64(pte.UPPER_RESERVED)
PERMISSIONS = np.uint64(pte.PERMISSIONS)
DOUBT = "L1 may have permitted only writing to a page that L0 then mapped read-only"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the entries with bits that KVM never sets, and the leaves without any permission."""
    for number, (name, table) in enumerate(checked.tables):
        for row in _with_any(table.entry, RESERVED):
            bits = int(table.entry[row] & RESERVED)
            yield _leaf(checked, name, table, int(row), f"has the bits {bits:#x}", "none of them")
        tables = table.tables
        for row in _with_any(tables.entry, UPPER):
            bits = int(tables.entry[row] & UPPER)
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{name}: the entry that leads to the table for {int(tables.base[row]):#x} "
                f"has the bits {bits:#x}",
                expected="the valid bit, the address of the table, and its width",
                evidence=(
                    Evidence("entry", "physical", int(tables.above[row]), int(tables.entry[row])),
                ),
            )
        # KVM makes a leaf of L0's own table from a readable entry, and always permits execution
        doubt = DOUBT if number else ""
        for row in _without(table.entry, PERMISSIONS):
            yield _leaf(checked, name, table, int(row), "permits nothing", "some permission", doubt)


def _with_any(entries: U64, bits: np.uint64) -> NDArray[np.int64]:
    """Return the indices of the entries that have any of ``bits`` set."""
    # mostly none has: the reduction needs no array as large as the entries
    if not np.bitwise_or.reduce(entries) & bits:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(entries & bits)


def _without(entries: U64, bits: np.uint64) -> NDArray[np.int64]:
    """Return the indices of the entries that have none of ``bits`` set."""
    parts = [
        part.start + np.flatnonzero((entries[part] & bits) == 0) for part in blocks(entries.size)
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def _leaf(
    checked: CheckedVm,
    name: str,
    table: LeafTable,
    row: int,
    told: str,
    expected: str,
    doubt: str = "",
) -> Finding:
    entry, shift = int(table.entry[row]), int(table.shift[row])
    return Finding(
        invariant=ID,
        vm_lpid=checked.vm.lpid,
        summary=f"{name}: the leaf for {int(table.address[row]):#x} {told}",
        expected=expected,
        evidence=(
            Evidence("leaf", "physical", int(table.where[row]), entry, pte.describe(entry, shift)),
        ),
        doubt=doubt,
    )


INVARIANT = Invariant(
    id=ID,
    statement="In L0's tables and the shadow tables, the reserved bits of a leaf (60 to 57, and "
    "6) and its PRIV bit are clear, as are the reserved bits of an entry that leads to a table "
    "(61, 60, and 7 to 5). A leaf permits something; a shadow leaf that permits nothing makes the "
    "verdict inconclusive, because L1 may have asked for that. Bits of leaves that only software "
    "uses (61, and 11 to 9) may be set: KVM copies them from the process's entry, and neither the "
    "hardware nor KVM reads them.",
    why="KVM takes an entry from the process's page table and adds the permission to execute, so "
    "an entry with these bits was not written by KVM. The kernel takes bits 61 and 60 of an entry "
    "that leads to a table as a part of the address.",
    source="kvmppc_book3s_instantiate_page, kvmppc_create_pte, p4d_populate, Power ISA 3.0B Book "
    "III 5.7.10",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
)
