"""L0 knows every guest that the hardware can run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from inspector import encoding, pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.proof_words import entry_words
from inspector.checks.view import CheckedHost, CheckedVm
from inspector.kvm.snapshot import Part, PartitionEntry, Unowned, Vm
from inspector.memory.arrays import is_in
from inspector.memory.ranges import Ranges
from inspector.model.partition import leads_to
from inspector.structures.radix import LeafTable

ID = "partition-owner"
PAGE = 1 << 12
RESERVED = 0x7000_0000_0000_0FE0
"""Reserved bits of dword 1 (Power ISA 3.0B Book III 5.7.6.1)."""
SHOWN = 3

BETWEEN = (
    "a VM that is being made or released, and a nested guest that is being released, have an "
    "entry and are in no list"
)
HALF = "the kernel clears the two words one after the other, without mmu_lock"
SWITCHING = "a VM that changes to the hash MMU releases all its nested guests"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield nothing: entries without an owner belong to no VM."""
    yield from ()


def _processes(entry: PartitionEntry, dword: int, ram: Ranges | None) -> Iterator[Finding]:
    """Yield dword 1 of the host's own entry if it cannot lead to a process table."""
    table = dword & pte.NEXT_TABLE_MASK & ~(PAGE - 1)
    if dword & pte.GUEST_RADIX and not dword & RESERVED and (ram is None or ram.hold(table)):
        return
    yield Finding(
        invariant=ID,
        vm_lpid=None,
        summary=f"dword 1 of the partition-table entry of LPID 0, the host itself, is {dword:#x}",
        expected="the guest-radix bit, and the address and size of the table of the host's "
        "processes",
        evidence=tuple(entry_words(entry)),
    )


class _Claim(NamedTuple):
    """A VM whose rmap entries for one LPID lead into a table without an owner.

    ``rows`` (indices of entries) and ``leaves`` (of the table's leaves) are parallel.
    """

    vm: Vm
    lpid: int
    rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    leaves: np.ndarray[tuple[int], np.dtype[np.int64]]


def find_host(checked: CheckedHost) -> Iterator[Finding]:
    """Yield the entries that lead somewhere and have no owner."""
    host = checked.snapshot.host
    if host.first_entry is not None and not leads_to(host.first_entry.dword, host.root):
        yield Finding(
            invariant=ID,
            vm_lpid=None,
            summary="the partition-table entry of LPID 0, the host itself, does not lead to the "
            "kernel's own page table",
            expected=f"a radix tree with its root at physical {host.root:#x}",
            evidence=tuple(entry_words(host.first_entry)),
        )
    if host.first_entry is not None and host.first_entry.second is not None:
        yield from _processes(host.first_entry, host.first_entry.second, host.ram)
    for unowned in host.unowned:
        claims = [claim for one in checked.vms if (claim := _claim(one, unowned.table))]
        if claims:
            yield _lost(unowned, claims[0])
        else:
            yield _nobody(checked, unowned)


def _claim(checked: CheckedVm, table: LeafTable | None) -> _Claim | None:
    """Return the LPID of a VM that has the most entries for leaves of a table, if any has.

    An entry is for a leaf if it names the leaf's address, and is in the slot
    of a page that L0 maps to the leaf's host page.
    """
    vm = checked.vm
    if table is None or not len(table) or not len(vm.host) or vm.locked:
        return None
    if vm.unread_guests is None:
        return None
    known = np.array([*(n.lpid for n in vm.nested), *vm.unread_guests], dtype=np.uint16)
    rows = np.flatnonzero(~is_in(checked.lpid, known) & checked.reachable)
    leaf = table.find(checked.gpa[rows])
    backing = checked.host_leaf(rows)
    both = (leaf >= 0) & (backing >= 0)
    rows, leaf, backing = rows[both], leaf[both], backing[both]
    frame = table.entry[leaf] & table.frame_mask(leaf)
    same = ((frame ^ vm.host.entry[backing]) & vm.host.frame_mask(backing)) == 0
    rows, leaf = rows[same], leaf[same]
    if not rows.size:
        return None
    lpid = int(np.argmax(np.bincount(checked.lpid[rows])))
    own = checked.lpid[rows] == lpid
    return _Claim(vm, lpid, rows[own], leaf[own])


def _lost(unowned: Unowned, claim: _Claim) -> Finding:
    """Return the finding for a table whose leaves a VM's rmap names under an unknown LPID."""
    vm, table = claim.vm, unowned.table
    assert table is not None
    entries = [
        Evidence(
            "entry for a leaf of it",
            "kernel",
            int(vm.rmaps.place[row]),
            int(vm.rmaps.word[row]),
            f"gfn {int(vm.rmaps.gfn[vm.rmaps.slot[row]]):#x}, "
            f"L2 {claim.lpid}:{encoding.decode(int(vm.rmaps.word[row])).gpa:#x}",
        )
        for row in claim.rows[:SHOWN]
    ]
    leaves = [
        Evidence(
            "leaf",
            "physical",
            int(table.where[leaf]),
            int(table.entry[leaf]),
            pte.describe(int(table.entry[leaf]), int(table.shift[leaf])),
        )
        for leaf in claim.leaves[:SHOWN]
    ]
    return Finding(
        invariant=ID,
        vm_lpid=None,
        summary=f"the partition-table entry of LPID {unowned.lpid} leads to a shadow table with "
        f"{len(table)} leaves, for {claim.rows.size} of which VM {vm.lpid} has entries of L2 "
        f"{claim.lpid}; the VM has no such nested guest",
        expected=f"nested guest {claim.lpid} of VM {vm.lpid} with shadow LPID {unowned.lpid}, or "
        "no leaves",
        evidence=(*entry_words(unowned.entry), *entries, *leaves),
        # A nested guest released alone loses its leaves under mmu_lock before it leaves the list.
        doubt="" if vm.nested else SWITCHING,
    )


def _nobody(checked: CheckedHost, unowned: Unowned) -> Finding:
    """Return the finding for an entry whose leaves no VM's rmap names."""
    table = unowned.table
    if not unowned.entry.dword:
        return Finding(
            invariant=ID,
            vm_lpid=None,
            summary=f"dword 1 of the partition-table entry of LPID {unowned.lpid} is "
            f"{unowned.entry.second:#x}, and dword 0 is zero",
            expected="both words zero, or an entry of a VM or nested guest",
            evidence=tuple(entry_words(unowned.entry)),
            doubt=HALF,
        )
    leads = "no radix tree that KVM makes"
    if table is not None:
        root = pte.partition_root(unowned.entry.dword)
        leads = f"a table with {len(table)} leaves at {root.table if root else 0:#x}"
    return Finding(
        invariant=ID,
        vm_lpid=None,
        summary=f"the partition-table entry of LPID {unowned.lpid} leads to {leads}, and no VM or "
        "nested guest with that LPID was found",
        expected=f"zero, or a VM or nested guest with LPID {unowned.lpid}",
        evidence=tuple(entry_words(unowned.entry)),
        doubt=BETWEEN,
    )


def rests_host(checked: CheckedHost) -> Iterator[Rest]:
    """Yield how many used entries of the partition table have a guest, and what was not read."""
    host = checked.snapshot.host
    if host.used:
        owned = {vm.lpid for vm in checked.snapshot.vms}
        owned |= {nested.shadow_lpid for vm in checked.snapshot.vms for nested in vm.nested}
        confirmed = min(len(owned), host.used - len(host.unowned))
        yield Witness(
            "used entries of the partition table", host.used, confirmed, "a guest with that LPID"
        )
    if host.gap:
        yield Unjudged("guests that only the partition table knows", host.gap)


INVARIANT = Invariant(
    id=ID,
    statement="Every entry of the host's partition table that is not zero belongs to a VM or a "
    "nested guest that can be found, or to the host itself, whose entry leads to the kernel's own "
    "page table and to a table of processes. A guest that is being made or released has an entry "
    "and is in no list: where that may be the reason, the verdict is inconclusive. An entry whose "
    "table has leaves that a VM's rmap names under an LPID of which the VM has no nested guest, "
    "while it has others, is a violation.",
    why="The hardware runs a guest by its entry. A guest that L0 does not find keeps its leaves "
    "when host pages go away: L0 takes its rmap entries for stale.",
    source="kvmppc_core_init_vm_hv, kvmppc_core_destroy_vm_hv, kvmhv_release_nested, "
    "kvmhv_release_all_nested, mmu_partition_table_set_entry",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED}),
    find_host=find_host,
    rests_host=rests_host,
)
