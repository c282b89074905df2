"""The hardware walks the tables that L0 keeps."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Evidence, Finding, Invariant, Severity
from inspector.checks.proof import member
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Nested, Part, PartitionEntry, Vm
from inspector.model.partition import leads_to
from inspector.regions import linear_to_physical

ID = "partition-entry"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the entries that lead to another table than the one L0 keeps under the LPID."""
    vm = checked.vm
    if vm.partition is not None and len(vm.host):
        yield from _judge(vm, vm, "pgtable", f"the VM's own LPID {vm.lpid}", vm.partition)
    for nested in vm.nested:
        if nested.partition is not None and (nested.partition.dword or len(nested.shadow)):
            name = f"shadow LPID {nested.shadow_lpid} of nested guest {nested.lpid}"
            yield from _judge(vm, nested, "shadow_pgtable", name, nested.partition)


def _judge(
    vm: Vm, owner: Vm | Nested, table: str, name: str, entry: PartitionEntry
) -> Iterator[Finding]:
    wanted = linear_to_physical(int(getattr(owner, table)))
    if leads_to(entry.dword, wanted):
        return
    root = pte.partition_root(entry.dword)
    where = f"the table at {root.table:#x}" if root else "no radix tree that KVM makes"
    yield Finding(
        ID,
        vm.lpid,
        f"the partition-table entry of {name} leads to {where}",
        f"host radix, a tree of {pte.TREE_BITS} bits with its root at physical {wanted:#x}",
        (
            Evidence("dword 0", "physical", entry.where, entry.dword),
            member("L0's table", owner, table),
        ),
    )


INVARIANT = Invariant(
    ID,
    "The entry of the partition table for a nested guest's shadow LPID leads to its shadow table, "
    "or is still zero while that is empty; the entry for a VM whose table has leaves leads to that "
    "table.",
    "The hardware walks what the entry names, whatever L0 keeps in its own tables.",
    "kvmhv_set_nested_ptbl, kvmppc_setup_partition_table, kvmhv_set_ptbl_entry",
    Severity.MEMORY_SAFETY,
    find,
    reads=frozenset({Part.NESTED, Part.HOST, Part.PARTITION}),
)
