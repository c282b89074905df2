"""A VM's MMU mode and nesting flag fit the tables and nested guests that it has."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity
from inspector.checks.proof_words import member, shown_word
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Vm

ID = "vm-mode"
TRUTHS = ("arch.radix", "arch.nested_enable", "arch.mmu_ready")
SHOWN = 8
"""How many nested guests are named."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield everything that a VM has and that its mode does not allow."""
    vm = checked.vm
    for name in TRUTHS:
        word = vm.members.get(name)
        if word is not None and word.value > 1:
            yield Finding(
                invariant=ID,
                vm_lpid=vm.lpid,
                summary=f"{name} is {word.value:#x}",
                expected="0 or 1: the kernel writes nothing else there",
                evidence=(shown_word(word),),
            )
    if vm.radix:
        yield from _radix(vm)
    else:
        yield from _hash(vm)


def _radix(vm: Vm) -> Iterator[Finding]:
    if vm.nested and not vm.nesting:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"nesting is not enabled, and the VM has {len(vm.nested)} nested guests",
            expected="nesting enabled: only then can L1 get a nested guest, and nesting is never "
            "disabled",
            evidence=(
                member("struct kvm", vm, "nesting"),
                *(
                    Evidence(f"nested guest {one.lpid}", "kernel", one.address)
                    for one in vm.nested[:SHOWN]
                ),
            ),
        )


def _hash(vm: Vm) -> Iterator[Finding]:
    if vm.strays:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"the VM is a hash guest, and has {len(vm.strays)} nested guests",
            expected="none: they are released before a guest becomes a hash guest",
            evidence=(
                member("struct kvm", vm, "radix"),
                *(
                    Evidence(f"nested guest {lpid}", "kernel", address)
                    for lpid, address in vm.strays[:SHOWN]
                ),
            ),
        )
    ready = vm.members.get("arch.mmu_ready")
    # kvmppc_switch_mmu_to_hpt clears arch.radix first, then frees the table, and then writes the
    # entry; no vCPU runs meanwhile, and mmu_ready is 0.
    doubt = (
        ""
        if ready is not None and ready.value
        else "the VM may be in the middle of becoming a hash guest"
    )
    shown = () if ready is None else (shown_word(ready),)
    table = vm.members.get("arch.pgtable")
    if table is not None and table.value:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary="the VM is a hash guest, and has a radix table",
            expected="none: it is freed when a guest becomes a hash guest",
            evidence=(
                member("struct kvm", vm, "radix"),
                shown_word(table),
                *shown,
            ),
            doubt=doubt,
        )
    if vm.partition is not None and vm.partition.dword & pte.HOST_RADIX:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary="the VM is a hash guest, and the partition-table entry of its LPID leads to a "
            "radix tree",
            expected="an entry with its hash table: the hardware walks the table that the entry "
            "names",
            evidence=(member("struct kvm", vm, "radix"), *_entry(vm), *shown),
            doubt=doubt,
        )


def _entry(vm: Vm) -> tuple[Evidence, ...]:
    if vm.partition is None:
        return ()
    return (Evidence("dword 0", "physical", vm.partition.where, vm.partition.dword),)


INVARIANT = Invariant(
    id=ID,
    statement="A hash guest has no radix table, no partition-table entry that leads to one and no "
    "nested guests; and only a VM with nesting enabled has nested guests. The flags are 0 or 1.",
    why="The flag arch.radix decides how L0 reads the reverse maps: if it is wrong, L0 looks at "
    "none of the VM's nested guests when a host page goes away.",
    source="kvmppc_switch_mmu_to_hpt, kvmppc_setup_partition_table, kvmhv_enable_nested, "
    "kvmhv_release_all_nested",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.VM}),
)
