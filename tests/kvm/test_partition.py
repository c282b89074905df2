"""The partition table of powernv and of pseries hosts, and why it may be missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.synthetic import ALL_LAYOUTS, FakeVm, Image, MemslotRange, build
from inspector import pte
from inspector.checks.verdict import Judgement, Verdict, VmJudgement, judge
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Part, Vm
from inspector.model.partition import leads_to
from inspector.model.vm import VmState
from inspector.regions import linear_to_physical
from inspector.structures.space import KernelSpace
from tests.builders import leaf, table, words
from tests.memories import patch, pieces_of, without

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
    """Say whether the entry of the VM, and of each nested guest, leads to the guest's table."""
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
    """L0 finds a new nested guest under its LPID before the hardware can."""
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


def whole(image: Image) -> Judgement:
    kernel = KernelSpace(image.memory, image.profile)
    return judge(collect(kernel, vm_list(kernel)))


def written(image: Image, where: int, *dwords: int) -> Image:
    data = b"".join(dword.to_bytes(8, "big") for dword in dwords)
    return replace(image, memory=patch(image.memory, where, data))


def dword_of(image: Image, lpid: int) -> int:
    kernel = KernelSpace(image.memory, image.profile)
    return int.from_bytes(kernel.memory.read(entry_of(image, lpid), 8), "big")


TWO = replace(STATE, shadows={1: table(leaf(0x5000, 0x40_0000)), 3: table()})


def forgotten(image: Image, lpid: int) -> Image:
    """Return the host after the VM's pointer to one of its nested guests was overwritten.

    Its structure, its shadow table and its entry in the partition table stay.
    """
    kernel = KernelSpace(image.memory, image.profile)
    (vm,) = collect(kernel, vm_list(kernel)).vms
    (guest,) = [nested for nested in vm.nested if nested.lpid == lpid]
    pointer = guest.address.to_bytes(8, "little")
    places = [
        start + data.index(pointer) for start, data in pieces_of(image.memory) if pointer in data
    ]
    assert len(places) == 1
    return replace(image, memory=patch(image.memory, places[0], bytes(8)))


@pytest.mark.slow
@pytest.mark.parametrize("age", sorted(ALL_LAYOUTS))
def test_a_guest_that_only_the_partition_table_knows_is_found(age: str) -> None:
    """The guest's entries look stale, but the leaves of its table show that they are not."""
    image = build([replace(VM, state=TWO)], layouts=ALL_LAYOUTS[age])
    assert whole(image).verdict is Verdict.CONSISTENT
    judgement = whole(forgotten(image, 1))
    assert judgement.verdict is Verdict.VIOLATIONS
    (finding,) = judgement.host_findings
    assert (finding.invariant, finding.vm_lpid) == ("partition-owner", None)
    assert "1 leaves, for 1 of which VM 7 has entries of L2 1" in finding.summary
    assert finding.evidence[0].value == dword_of(image, 8)
    assert finding.evidence[2].value == 0x0010_0000_0000_5001


def test_a_vm_that_has_no_guest_left_may_be_changing_its_mmu() -> None:
    one = replace(STATE, shadows={1: table(leaf(0x5000, 0x40_0000))})
    judgement = whole(forgotten(build([replace(VM, state=one)]), 1))
    assert (judgement.verdict, judgement.findings) == (Verdict.INCONCLUSIVE, ())
    (doubt,) = judgement.host_doubts
    assert "changes to the hash MMU" in doubt.doubt


def test_an_entry_of_nobody_is_a_doubt() -> None:
    """The entry may belong to a VM that is being created or released."""
    image = build([VM])
    entry = dword_of(image, 7) + (1 << 20)
    for lpid, dword in ((100, entry), (4095, 1)):
        judgement = whole(written(image, entry_of(image, lpid), dword, 0))
        assert (judgement.verdict, judgement.findings) == (Verdict.INCONCLUSIVE, ())
        (doubt,) = judgement.host_doubts
        assert f"entry of LPID {lpid} leads to" in doubt.summary
    nothing = build([])
    judgement = whole(written(nothing, entry_of(nothing, 5), entry, 0))
    assert judgement.verdict is Verdict.INCONCLUSIVE


def test_what_was_never_an_entry_of_a_pseries_host_is_passed_over() -> None:
    """The host's table is not cleared when it is allocated."""
    image = build([VM], pseries=True)
    kernel = KernelSpace(image.memory, image.profile)
    table_at = linear_to_physical(kernel.pointer(image.profile.symbols["partition_tb"] + 8))
    assert whole(written(image, table_at + 16 * 300, 0x5A5A_5A5A)).verdict is Verdict.CONSISTENT
    judgement = whole(written(image, table_at + 16 * 300, dword_of_root(0x7000_0000)))
    assert judgement.verdict is Verdict.INCONCLUSIVE


def dword_of_root(root: int) -> int:
    return pte.partition_dword(pte.Root(root, pte.PGD_BITS))


def test_the_entry_of_the_host_itself_leads_to_its_own_table() -> None:
    image = build([VM])
    swapper = linear_to_physical(image.profile.symbols["swapper_pg_dir"])
    good = written(image, entry_of(image, 0), dword_of_root(swapper))
    assert whole(good).verdict is Verdict.CONSISTENT
    (finding,) = whole(written(image, entry_of(image, 0), dword_of(image, 7))).findings
    assert (finding.invariant, finding.vm_lpid) == ("partition-owner", None)


def test_a_vm_has_a_table_and_the_entry_leads_to_it() -> None:
    image = build([replace(VM, state=VmState(12))])
    offset, _ = image.profile.struct("kvm").place("arch.pgtable")
    place = linear_to_physical(image.kvm[0] + offset)
    (finding,) = whole(replace(image, memory=patch(image.memory, place, bytes(8)))).findings
    assert finding.invariant == "partition-entry"
    elsewhere = written(image, entry_of(image, 7), dword_of_root(0x7000_0000))
    assert [f.invariant for f in whole(elsewhere).findings] == ["partition-entry"]
    # A guest that was a hash guest, whose entry has not been rewritten yet.
    changing = whole(written(image, entry_of(image, 7), 0x2000_0001))
    assert (changing.verdict, changing.findings) == (Verdict.INCONCLUSIVE, ())


def test_dword_1_is_the_process_table() -> None:
    image = build([VM])
    assert whole(written(image, entry_of(image, 8) + 8, 0)).verdict is Verdict.CONSISTENT
    judgement = whole(written(image, entry_of(image, 8) + 8, 0x1234))
    assert (judgement.verdict, judgement.findings) == (Verdict.INCONCLUSIVE, ())
    (doubt,) = judgement.vms[0].doubts
    assert "dword 1" in doubt.summary


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
