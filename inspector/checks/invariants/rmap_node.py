"""No list node is in two lists."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Slot, Vm
from inspector.memory.arrays import distinct, is_in

ID = "rmap-node"


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the nodes that are in more than one list of this VM, or also in a list of another."""
    vms = [checked.vm, *(vm for vm in checked.others if not vm.locked)]
    nodes = [vm.rmaps.node[vm.rmaps.node != 0] for vm in vms]
    values = np.sort(np.concatenate(nodes))
    twice = distinct(values[1:][values[1:] == values[:-1]])
    for node in twice[is_in(twice, nodes[0])]:
        lists = [(vm, slot) for vm in vms for slot in _slots(vm, node)]
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"the list node at {int(node):#x} is in {len(lists)} lists, those of "
            + ", ".join(f"gfn {slot.gfn:#x} of VM {vm.lpid}" for vm, slot in lists),
            expected="each struct rmap_nested in one list only",
            evidence=tuple(Evidence("slot", "kernel", slot.where, slot.head) for _, slot in lists),
        )


def _slots(vm: Vm, node: np.uint64) -> list[Slot]:
    return [vm.rmaps[int(i)] for i in distinct(vm.rmaps.slot[vm.rmaps.node == node])]


INVARIANT = Invariant(
    id=ID,
    statement="No list node is in two lists, nor in lists of two VMs.",
    why="The first list that is emptied frees the node; the kernel then follows the other list "
    "into freed memory, and frees the node again.",
    source="kvmhv_insert_nest_rmap, kvmhv_remove_nest_rmap_list, kvmhv_free_memslot_nest_rmap",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.MEMSLOTS, Part.RMAPS}),
)
