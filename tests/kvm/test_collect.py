"""The snapshot of an image is the state that was put into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import ALL_LAYOUTS, FakeVm, Image, MemslotRange, build, last_lpid
from inspector.checks.verdict import Verdict, VmJudgement, judge
from inspector.errors import TargetNotSupported
from inspector.image.profile import StructLayout
from inspector.kvm.collect import collect, held_locks, vm_list
from inspector.kvm.snapshot import Part, Snapshot
from inspector.model.vm import EntryState, VmState
from inspector.structures.space import KernelSpace
from tests.builders import GFN_REGIONS, LPIDS, leaf, state_of, table, vm_states, words
from tests.memories import patch, without

ORDERS = st.sampled_from("<>")
AGES = st.sampled_from(sorted(ALL_LAYOUTS))


def memslots_for(state: VmState) -> tuple[MemslotRange, ...]:
    """Return memslots that hold the gfns of a random VM, with a hole between them."""
    region = 1 << (21 - state.page_shift)
    return (
        MemslotRange(0, 2 * region, 0x7F00_0000_0000, id=3),
        MemslotRange(GFN_REGIONS[-1] * region, region, 0x7E00_0000_0000, id=1, flags=1),
    )


def space(image: Image) -> KernelSpace:
    return KernelSpace(image.memory, image.profile)


def collected(image: Image) -> Snapshot:
    kernel = space(image)
    return collect(kernel, vm_list(kernel))


def kept(state: VmState) -> VmState:
    """Return the visible part of a state: empty slots leave no trace."""
    return VmState(
        state.page_shift,
        state.host,
        {gfn: found for gfn, found in state.slots.items() if found},
        state.shadows,
        state.l1_tables,
    )


@pytest.mark.slow
@given(st.sampled_from((12, 16)), ORDERS, AGES, st.data())
def test_everything_put_in_comes_back(
    page_shift: int, order: str, age: str, data: st.DataObject
) -> None:
    layouts = ALL_LAYOUTS[age]
    lpids = (*LPIDS[:-1], last_lpid(layouts))
    one_vm = vm_states(page_shift, odd_bits=True, lpids=lpids)
    states = data.draw(st.lists(one_vm, max_size=2))
    vms = [
        FakeVm(state, memslots_for(state), lpid=7 + i, pid=1000 + i, node_idx=i & 1)
        for i, state in enumerate(states)
    ]
    image = build(vms, 1 << page_shift, order, layouts=layouts)
    snapshot = collected(image)
    assert vm_list(space(image)) == image.vm_list
    assert snapshot.page_shift == page_shift
    assert [vm.address for vm in snapshot.vms] == list(image.kvm)
    for vm, wanted, memslots in zip(snapshot.vms, vms, image.memslots, strict=True):
        assert state_of(vm, page_shift) == kept(wanted.state)
        assert vm.gaps == ()
        assert vm.rmaps.problems == ()
        assert (vm.lpid, vm.pid, vm.radix, vm.nesting) == (wanted.lpid, wanted.pid, True, True)
        assert [
            MemslotRange(s.base_gfn, s.npages, s.userspace_addr, s.id, s.flags) for s in vm.memslots
        ] == list(memslots)
        for slot in vm.rmaps:
            memslot = vm.memslots[slot.memslot]
            assert 0 <= slot.gfn - memslot.base_gfn < memslot.npages
            assert slot.where == memslot.rmap + 8 * (slot.gfn - memslot.base_gfn)
            assert slot.head == (int(slot.nodes[0]) or int(slot.words[0]))


@pytest.mark.slow
@given(st.sets(st.integers(0, 4095), max_size=70), st.sampled_from((12, 16)), ORDERS, AGES)
def test_every_nested_guest_is_found_under_its_lpid(
    lpids: set[int], page_shift: int, order: str, age: str
) -> None:
    layouts = ALL_LAYOUTS[age]
    shadows = {lpid % (last_lpid(layouts) + 1): table() for lpid in list(lpids)[:6]}
    vms = [FakeVm(VmState(page_shift, shadows=shadows), ())]
    image = build(vms, 1 << page_shift, order, layouts=layouts)
    (vm,) = collected(image).vms
    assert [nested.lpid for nested in vm.nested] == sorted(shadows)
    assert all(nested.l1_lpid == nested.lpid for nested in vm.nested)
    assert all(nested.l1 is None for nested in vm.nested)


def one(state: VmState, **changes: int) -> FakeVm:
    return replace(FakeVm(state, memslots_for(state)), **changes)  # type: ignore[arg-type]


STATE = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x5000), (1, 0x6000)), 2: words((1, 0x7000))},
    {1: table(leaf(0x5000, 0x40_0000))},
    {1: table(leaf(0x5000, 0x1000))},
)


@pytest.mark.parametrize(
    ("word", "held"), [(0, False), (1, True), (0x30000, False), (0x50000, False), (0x30001, True)]
)
def test_a_queued_spinlock_is_held_by_its_lowest_bit(word: int, held: bool) -> None:
    image = build([one(STATE, mmu_lock=word)])
    (vm,) = collected(image).vms
    assert vm.locked is held
    assert vm.mmu_lock == word
    assert held_locks(space(image), image.vm_list) == [image.kvm[0]] * held


def test_a_plain_spinlock_is_held_when_it_is_not_zero() -> None:
    image = build([one(STATE, mmu_lock=0x80000002)])
    structs = {name: s for name, s in image.profile.structs.items() if name != "qspinlock"}
    kernel = KernelSpace(image.memory, replace(image.profile, structs=structs))
    assert [vm.locked for vm in collect(kernel, image.vm_list).vms] == [True]


def test_a_hash_guest_has_no_tables_and_no_rmaps() -> None:
    (vm,) = collected(build([one(STATE, radix=False)])).vms
    assert not vm.radix
    assert (len(vm.host), len(vm.rmaps), vm.nested) == (0, 0, ())
    assert len(vm.memslots) == 3


def test_a_hash_host_is_refused() -> None:
    image = build([])
    kernel = space(image)
    spec = kernel.pointer(image.profile.symbols["cur_cpu_spec"])
    memory = patched(
        image, spec + image.profile.struct("cpu_spec").offset("mmu_features"), bytes(4)
    )
    with pytest.raises(TargetNotSupported, match="hash MMU"):
        vm_list(KernelSpace(memory.memory, image.profile))


def test_a_host_without_kvm_is_refused() -> None:
    with pytest.raises(TargetNotSupported, match="modprobe kvm_hv"):
        vm_list(space(build([], kvm_loaded=False)))


def test_a_host_without_vms_has_none() -> None:
    assert collected(build([])).vms == ()


def test_vm_list_of_a_kernel_with_kvm_built_in_is_its_own_symbol() -> None:
    image = build([], kvm_loaded=False)
    symbols = {**image.profile.symbols, "vm_list": 0xC000_0000_0000_1230}
    assert vm_list(KernelSpace(image.memory, replace(image.profile, symbols=symbols))) == (
        0xC000_0000_0000_1230
    )


def test_a_kernel_without_the_idr_is_refused() -> None:
    image = build([one(STATE)])
    layout = image.profile.struct("kvm")
    members = {k: v for k, v in layout.members.items() if "idr" not in k}
    structs = {**image.profile.structs, "kvm": StructLayout("kvm", layout.size, members)}
    with pytest.raises(TargetNotSupported, match=r"no member arch\.kvm_nested_guest_idr"):
        collected(replace(image, profile=replace(image.profile, structs=structs)))


def patched(image: Image, address: int, data: bytes) -> Image:
    """Return the image with other bytes at a linear address."""
    return replace(image, memory=patch(image.memory, address & 0x0FFF_FFFF_FFFF_FFFF, data))


def gaps(image: Image) -> Sequence[str]:
    (vm,) = collected(image).vms
    return [gap.text for gap in vm.gaps]


def test_what_is_missing_is_noted_and_the_rest_collected() -> None:
    image = build([one(STATE)])
    (whole,) = collected(image).vms
    assert whole.gaps == ()
    kernel = space(image)
    array = kernel.physical(whole.memslots[0].rmap)
    (vm,) = collected(replace(image, memory=without(image.memory, array, 4096))).vms
    assert [gap.text for gap in vm.gaps] == [
        f"rmap array: 512 slots from gfn 0x0, at kernel address {whole.memslots[0].rmap:#x}, "
        "are not readable: not in the dump"
    ]
    assert vm.gaps[0].part is Part.RMAPS
    assert len(vm.rmaps) == 0
    assert len(vm.host) == 1

    table_at = whole.nested[0].shadow_pgtable & 0x0FFF_FFFF_FFFF_FFFF
    (vm,) = collected(replace(image, memory=without(image.memory, table_at, 8 << 13))).vms
    assert len(vm.gaps) == 1
    assert "shadow table of nested guest 1" in vm.gaps[0].text
    assert vm.gaps[0].part is Part.SHADOW

    assert whole.nested[0].l1 is not None
    pte_at = int(whole.nested[0].l1.where[0])
    assert (pte_at >> 12) >= whole.memslots[-1].base_gfn


def test_l1_tables_that_are_missing_are_noted() -> None:
    image = build([one(STATE)])
    kernel = space(image)
    (whole,) = collected(image).vms
    mm = kernel.field("kvm", whole.address, "mm")
    pgd = kernel.field("mm_struct", mm, "pgd") & 0x0FFF_FFFF_FFFF_FFFF
    (vm,) = collected(replace(image, memory=patch(image.memory, pgd, bytes(8 << 13)))).vms
    assert [gap.part for gap in vm.gaps] == [Part.L1]
    assert "L1's table for nested guest 1" in vm.gaps[0].text


def test_a_list_of_vms_that_does_not_close_gives_those_that_were_met() -> None:
    image = build([one(STATE), one(STATE, lpid=2)])
    first, second = image.kvm
    offset = image.profile.struct("kvm").offset("vm_list")
    loop = patched(image, second + offset, (first + offset).to_bytes(8, "little"))
    snapshot = collected(loop)
    assert [vm.address for vm in snapshot.vms] == [first, second]
    (gap,) = snapshot.gaps
    assert "does not lead back" in gap.text


@pytest.mark.slow
@pytest.mark.parametrize("lost", range(3))
@pytest.mark.parametrize("age", ALL_LAYOUTS)
def test_a_vm_that_is_missing_is_a_gap_and_the_others_are_collected(lost: int, age: str) -> None:
    vms = [one(STATE, lpid=lpid) for lpid in (1, 2, 3)]
    image = build(vms, layouts=ALL_LAYOUTS[age])
    size = image.profile.struct("kvm").size
    there = image.kvm[lost] & 0x0FFF_FFFF_FFFF_FFFF
    whole = collected(image)
    snapshot = collected(replace(image, memory=without(image.memory, there, size)))
    others = [vm.address for vm in snapshot.vms]
    assert sorted(others) == sorted(set(image.kvm) - {image.kvm[lost]})
    for vm in snapshot.vms:
        (same,) = [other for other in whole.vms if other.address == vm.address]
        assert state_of(vm, 12) == state_of(same, 12)
        assert vm.gaps == ()
    texts = [gap.text for gap in snapshot.gaps]
    assert any(text.startswith("the list of VMs: cannot read 8 bytes") for text in texts)
    assert any(text.startswith(f"the VM at {image.kvm[lost]:#x}: cannot read") for text in texts)
    assert (
        held_locks(space(replace(image, memory=without(image.memory, there, size))), image.vm_list)
        == []
    )
    judgement = judge(snapshot)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert {vm.verdict for vm in judgement.vms} == {Verdict.CONSISTENT}


def test_a_vm_of_which_one_member_is_missing_is_a_gap() -> None:
    image = build([one(STATE), one(STATE, lpid=2)])
    place = image.kvm[1] + image.profile.struct("kvm").offset("arch.l1_ptcr")
    memory = without(image.memory, place & 0x0FFF_FFFF_FFFF_FFFF, 8)
    snapshot = collected(replace(image, memory=memory))
    assert [vm.lpid for vm in snapshot.vms] == [1]
    (gap,) = snapshot.gaps
    assert f"kernel address {place:#x}" in gap.text


def test_entries_of_a_nested_guest_that_is_missing_are_not_called_stale() -> None:
    state = replace(STATE, slots={1: words((1, 0x5000), (9, 0x6000))})
    image = build([one(state)])
    (vm,) = judge(collected(image)).vms
    assert (vm.counts.live, vm.counts.stale, vm.counts.unknown) == (1, {EntryState.NO_GUEST: 1}, 0)
    nested = vm.vm.nested[0]

    def lost(address: int, length: int) -> VmJudgement:
        memory = without(image.memory, address & 0x0FFF_FFFF_FFFF_FFFF, length)
        (judgement,) = judge(collected(replace(image, memory=memory))).vms
        assert judgement.verdict is Verdict.INCONCLUSIVE
        assert judgement.counts.live == 0
        return judgement

    guest = lost(nested.address, 128)
    assert guest.vm.unread_guests == (1,)
    assert (guest.counts.stale, guest.counts.unknown) == ({EntryState.NO_GUEST: 1}, 1)

    table = lost(nested.shadow_pgtable, 8 << 13)
    assert (table.counts.stale, table.counts.unknown) == ({EntryState.NO_GUEST: 1}, 1)

    host = lost(space(image).field("kvm", vm.vm.address, "arch.pgtable"), 8 << 13)
    assert (host.counts.stale, host.counts.unknown) == ({EntryState.NO_GUEST: 1}, 1)

    idr = vm.vm.address + image.profile.struct("kvm").offset("arch.kvm_nested_guest_idr")
    head = space(image).field("idr", idr, "idr_rt.xa_head") & ~3
    container = lost(head, 576)
    assert container.vm.unread_guests is None
    assert (container.counts.stale, container.counts.unknown) == ({}, 2)
