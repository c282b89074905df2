"""A leaf maps memory that the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity, Unjudged
from inspector.checks.view import CheckedHost, CheckedVm
from inspector.kvm.snapshot import Part
from inspector.memory.arrays import blocks
from inspector.memory.ranges import Ranges
from inspector.structures.radix import LeafTable

ID = "leaf-memory"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves that map no memory and do not have the cache attribute of a device."""
    ram = checked.whole and checked.whole.snapshot.host.ram
    if not ram or not ram.starts.size:
        return
    for name, table in checked.tables:
        for row in _outside(table, ram):
            entry, shift = int(table.entry[row]), int(table.shift[row])
            yield Finding(
                invariant=ID,
                vm_lpid=checked.vm.lpid,
                summary=f"{name} maps {int(table.address[row]):#x} to "
                f"{pte.frame_of(entry, shift):#x}, where the machine has no memory, as if it were "
                "memory",
                expected="memory of the machine, or a leaf with the cache attribute of a device",
                evidence=(
                    Evidence(
                        "leaf",
                        "physical",
                        int(table.where[row]),
                        entry,
                        pte.describe(entry, shift),
                    ),
                ),
            )


def _outside(table: LeafTable, ram: Ranges) -> NDArray[np.int64]:
    """Return the leaves that reach outside the machine's memory, except those of devices."""
    found = [np.zeros(0, dtype=np.int64)]
    largest = 1 << int(table.shift.max(initial=0))
    ends = ram.starts + ram.sizes
    one = ram.starts.size == 1 and not ram.starts[0]
    # If the memory is one piece from 0 on, only leaves that begin near its end can reach beyond.
    near = np.uint64(max(0, int(ends[0]) - largest)) if one else np.uint64(0)
    for part in blocks(len(table)):
        frame = table.entry[part] & np.uint64(pte.RPN_MASK)
        rows = np.flatnonzero(frame >= near)
        frame, shift = frame[rows], table.shift[part][rows].astype(np.uint64)
        index = np.searchsorted(ram.starts, frame, side="right") - 1
        outside = (index < 0) | (frame + (np.uint64(1) << shift) > ends[index])
        outside &= (table.entry[part][rows] & np.uint64(pte.CACHE_INHIBITED)) == 0
        found.append(part.start + rows[outside])
    return np.concatenate(found)


def rests(checked: CheckedHost) -> Iterator[Unjudged]:
    """Yield the leaves as unjudged if the target does not say where the machine has memory."""
    if checked.snapshot.vms and checked.snapshot.host.ram is None:
        yield Unjudged(
            "leaves that map no memory", "the target does not say where the machine has memory"
        )


INVARIANT = Invariant(
    id=ID,
    statement="All of what a leaf of L0's table or of a shadow table maps is memory that the "
    "machine has, or the leaf has the cache attribute of a device.",
    why="KVM takes the frame and the attribute from the page table of the VM's process. A device's "
    "registers are mapped there with caching inhibited; nothing else lies outside of memory.",
    source="kvmppc_book3s_instantiate_page, pgprot_noncached",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
    rests_host=rests,
)
