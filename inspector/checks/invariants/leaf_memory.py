"""What a leaf maps is there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.base import Evidence, Finding, Invariant, Severity, Unjudged
from inspector.checks.view import CheckedHost, CheckedVm
from inspector.kvm.snapshot import Part
from inspector.memory.ranges import Ranges
from inspector.structures.radix import LeafTable

ID = "leaf-memory"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves, L0's and shadow ones, that map no memory and do not say so."""
    ram = checked.whole and checked.whole.snapshot.host.ram
    if not ram:
        return
    for name, table in checked.tables:
        for row in np.flatnonzero(_outside(table, ram)):
            entry, shift = int(table.entry[row]), int(table.shift[row])
            yield Finding(
                ID,
                checked.vm.lpid,
                f"{name} maps {int(table.address[row]):#x} to {pte.frame_of(entry, shift):#x}, "
                "where the machine has no memory, as if it were memory",
                "memory of the machine, or a leaf with the cache attribute of a device",
                (
                    Evidence(
                        "leaf",
                        "physical",
                        int(table.where[row]),
                        entry,
                        pte.describe(entry, shift),
                    ),
                ),
            )


def _outside(table: LeafTable, ram: Ranges) -> NDArray[np.bool_]:
    """Tell which leaves reach outside of the machine's memory, and are no device's."""
    if not len(table):
        return np.zeros(0, dtype=np.bool_)
    frame = table.frame
    if ram.starts.size == 1 and not ram.starts[0]:
        outside = frame + table.size > ram.sizes[0]
    else:
        index = np.searchsorted(ram.starts, frame, side="right") - 1
        outside = (index < 0) | (frame + table.size > ram.starts[index] + ram.sizes[index])
    found: NDArray[np.bool_] = outside & (table.entry & np.uint64(pte.CACHE_INHIBITED) == 0)
    return found


def rests(checked: CheckedHost) -> Iterator[Unjudged]:
    """Say where the target does not tell what memory the machine has."""
    if checked.snapshot.vms and checked.snapshot.host.ram is None:
        yield Unjudged(
            "leaves that map no memory", "the target does not say where the machine has memory"
        )


INVARIANT = Invariant(
    ID,
    "A leaf of L0's table or of a shadow table maps memory that the machine has, all of it, or has "
    "the cache attribute of a device.",
    "KVM takes the frame and the attribute from the page table of the VM's process. A device's "
    "registers are mapped there with caching inhibited; nothing else lies outside of memory.",
    "kvmppc_book3s_instantiate_page, pgprot_noncached",
    Severity.MEMORY_SAFETY,
    find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
    rests_host=rests,
)
