"""The hardware walks the tables that L0 keeps."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.proof_words import entry_words, member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Nested, Part, PartitionEntry, Vm
from inspector.model.partition import leads_to
from inspector.regions import linear_to_physical

ID = "partition-entry"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the entries that do not lead to the table that L0 keeps for the LPID's guest."""
    vm = checked.vm
    if not vm.radix:
        if vm.partition is not None:
            name = f"the hash guest's own LPID {vm.lpid}"
            yield from _process(vm, vm, name, vm.partition, 0)
        return
    if not vm.pgtable:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary="the VM has no table",
            expected="a table from the creation of the VM on",
            evidence=(member("struct kvm", vm, "pgtable"), *entry_words(vm.partition)),
        )
    elif vm.partition is not None and (vm.partition.dword or len(vm.host)):
        name = f"the VM's own LPID {vm.lpid}"
        yield from _root(vm, vm, "pgtable", name, vm.partition, len(vm.host))
        yield from _process(vm, vm, name, vm.partition, pte.GUEST_RADIX)
    for nested in vm.nested:
        if nested.partition is not None and (nested.partition.dword or len(nested.shadow)):
            name = f"shadow LPID {nested.shadow_lpid} of nested guest {nested.lpid}"
            yield from _root(vm, nested, "shadow_pgtable", name, nested.partition, 1)
            yield from _process(vm, nested, name, nested.partition, 0)


def _root(
    vm: Vm, owner: Vm | Nested, table: str, name: str, entry: PartitionEntry, leaves: int
) -> Iterator[Finding]:
    """Yield the entry if it does not lead to the root of the owner's table."""
    wanted = linear_to_physical(int(getattr(owner, table)))
    if leads_to(entry.dword, wanted):
        return
    root = pte.partition_root(entry.dword)
    where = f"the table at {root.table:#x}" if root else "no radix tree that KVM makes"
    yield Finding(
        invariant=ID,
        vm_lpid=vm.lpid,
        summary=f"the partition-table entry of {name} leads to {where}",
        expected=f"host radix, a tree of {pte.TREE_BITS} bits with its root at physical "
        f"{wanted:#x}",
        evidence=(*entry_words(entry), member("L0's table", owner, table)),
        # a guest that changes from the hash MMU to radix gets its table before its entry
        doubt="" if leaves or entry.dword & pte.HOST_RADIX else "the guest may be changing its MMU",
    )


def _process(
    vm: Vm, owner: Vm | Nested, name: str, entry: PartitionEntry, flag: int
) -> Iterator[Finding]:
    """Yield the entry if its dword 1 is not the owner's process table."""
    if entry.second is None or owner.process_table is None or not entry.dword:
        return
    if entry.second == (owner.process_table | flag):
        return
    yield Finding(
        invariant=ID,
        vm_lpid=vm.lpid,
        summary=f"dword 1 of the partition-table entry of {name} is {entry.second:#x}",
        expected=f"{owner.process_table | flag:#x}, the process table that the guest has "
        "registered",
        evidence=(*entry_words(entry), member("process table", owner, "process_table")),
        doubt="the kernel writes the two words one after the other, without mmu_lock",
    )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many roots of tables the partition table confirms."""
    vm = checked.vm
    owners = [(vm.pgtable, vm.partition)] if vm.radix else []
    owners += [(nested.shadow_pgtable, nested.partition) for nested in vm.nested]
    confirmed = sum(
        entry is not None and leads_to(entry.dword, linear_to_physical(table))
        for table, entry in owners
    )
    yield Witness("roots of tables", len(owners), confirmed, "an entry of the partition table")
    if any(entry is not None and entry.second is None for _, entry in owners):
        yield Unjudged("process tables in partition-table entries", "dword 1 is not in the target")


INVARIANT = Invariant(
    id=ID,
    statement="The entry of the partition table for a nested guest's shadow LPID leads to its "
    "shadow table, or is still zero while the table is empty; the entry for a VM leads to its "
    "table. Dword 1 is the process table that the guest has registered.",
    why="The hardware walks the table that the entry names, whatever table L0 maintains.",
    source="kvmhv_set_nested_ptbl, kvmppc_setup_partition_table, kvmhv_set_ptbl_entry",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.NESTED, Part.HOST, Part.PARTITION}),
    rests=rests,
)
