"""The partition table of powernv and of pseries hosts, and what stands in its way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.synthetic import FakeVm, Image, MemslotRange, build
from inspector.checks.verdict import Verdict, VmJudgement, judge
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Part, Vm
from inspector.model.partition import leads_to
from inspector.model.vm import VmState
from inspector.structures.space import KernelSpace
from tests.builders import leaf, table, words
from tests.memories import patch, without

STATE = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x5000))},
    {1: table(leaf(0x5000, 0x40_0000)), 3: table()},
)
VM = FakeVm(STATE, (MemslotRange(0, 512, 0x7F00_0000_0000),), lpid=7)


def judged(image: Image) -> VmJudgement:
    kernel = KernelSpace(image.memory, image.profile)
    (vm,) = judge(collect(kernel, vm_list(kernel))).vms
    return vm


def roots(vm: Vm) -> list[bool]:
    """Say of the VM's own entry and each nested guest's whether it leads to its table."""
    pairs = [(vm.partition, vm.pgtable)]
    pairs += [(nested.partition, nested.shadow_pgtable) for nested in vm.nested]
    return [
        entry is not None and leads_to(entry.dword, pgtable & 0x0FFF_FFFF_FFFF_FFFF)
        for entry, pgtable in pairs
    ]


@pytest.mark.parametrize("pseries", [False, True])
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_the_entries_are_found(page_size: int, pseries: bool) -> None:
    state = replace(STATE, page_shift=page_size.bit_length() - 1)
    image = build([replace(VM, state=state)], page_size, pseries=pseries)
    vm = judged(image).vm
    assert vm.gaps == ()
    assert roots(vm) == [True, True, True]


def entry_of(image: Image, lpid: int) -> int:
    kernel = KernelSpace(image.memory, image.profile)
    return kernel.physical(kernel.pointer(image.profile.symbols["partition_tb"]) + 16 * lpid)


def overwritten(lpid: int, dword: int) -> VmJudgement:
    image = build([VM])
    where = entry_of(image, lpid)
    return judged(replace(image, memory=patch(image.memory, where, dword.to_bytes(8, "big"))))


def test_an_entry_that_is_not_yet_written_is_legal() -> None:
    """L0 finds a new nested guest under its LPID before the hardware does."""
    assert overwritten(9, 0).verdict is Verdict.CONSISTENT


def test_an_entry_is_written_before_the_first_shadow_leaf() -> None:
    (finding,) = overwritten(8, 0).findings
    assert finding.invariant == "partition-entry"


@pytest.mark.parametrize(
    ("lpid", "change"),
    [(7, 1 << 63), (7, 1 << 17), (8, 1), (8, 1 << 61), (8, 1 << 63), (9, 1 << 20)],
)
def test_an_entry_that_leads_elsewhere_is_found(lpid: int, change: int) -> None:
    image = build([VM])
    kernel = KernelSpace(image.memory, image.profile)
    where = entry_of(image, lpid)
    dword = int.from_bytes(kernel.memory.read(where, 8), "big") ^ change
    (finding,) = overwritten(lpid, dword).findings
    assert finding.invariant == "partition-entry"
    assert (finding.evidence[0].address, finding.evidence[0].value) == (where, dword)


def test_the_entry_of_a_vm_that_never_ran_is_not_looked_at() -> None:
    """A VM that was switched to radix has its entry written before it runs."""
    image = build([replace(VM, state=VmState(12))])
    memory = patch(image.memory, entry_of(image, 7), bytes(8))
    assert judged(replace(image, memory=memory)).verdict is Verdict.CONSISTENT


def reasons(vm: VmJudgement) -> list[str]:
    assert vm.verdict is Verdict.CONSISTENT
    assert all(gap.part is Part.PARTITION for gap in vm.vm.gaps)
    return [item.gap.text for item in vm.not_judged if item.invariant.id == "partition-entry"]


def test_what_is_missing_is_said() -> None:
    image = build([VM])
    symbols = {k: v for k, v in image.profile.symbols.items() if k != "partition_tb"}
    old = judged(replace(image, profile=replace(image.profile, symbols=symbols)))
    assert [item.at_all for item in old.not_judged] == [False]
    assert "was taken without partition_tb" in reasons(old)[0]

    pointer = image.profile.symbols["partition_tb"] & 0x0FFF_FFFF_FFFF_FFFF
    nowhere = judged(replace(image, memory=patch(image.memory, pointer, bytes(16))))
    assert "partition_tb and pseries_partition_tb are zero" in reasons(nowhere)[0]

    cut = judged(replace(image, memory=without(image.memory, entry_of(image, 8), 16)))
    assert [item.at_all for item in cut.not_judged] == [True]
    assert reasons(cut)[0].startswith("partition-table entry of LPID 8: ")

    many = judged(build([replace(VM, lpid=4095)]))
    assert any("has no entry for LPID 4096" in item.gap.text for item in many.not_judged)
    assert {finding.invariant for finding in many.findings} == {"shadow-lpid"}
