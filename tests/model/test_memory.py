"""The inspector reads and judges any state of the specification from its memory image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fixtures.mutations.plain import leaves_of
from fixtures.synthetic import ALL_LAYOUTS, build
from fixtures.synthetic.states import StateVm, shown
from inspector import pte
from inspector.checks.verdict import judge
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.model.departures import AS_IT_IS
from inspector.model.holds import BEYOND_MEMORY, broken
from inspector.model.page_fault import Access
from inspector.model.rules import MUST_HOLD, Rules
from inspector.model.state import State
from inspector.model.vm import Leaf
from inspector.structures.space import KernelSpace
from tests.model.world import Step, World, steps
from tests.profiles import examples

READINGS = st.sampled_from([MUST_HOLD, AS_IT_IS])
KERNELS = sorted(ALL_LAYOUTS)
ORDERS = st.sampled_from("<>")


def made(done: list[Step], rules: Rules, page_shift: int, *, hardware_sets_rc: bool) -> State:
    world = World(page_shift, rules, hardware_sets_rc=hardware_sets_rc)
    for name, *arguments in done:
        method: Callable[..., None] = getattr(world, name)
        method(*arguments)
    return world.vm


def written(states: list[State], order: str, layouts: str) -> Snapshot:
    vms = [StateVm(state, pid=7 + i, node_idx=i & 1) for i, state in enumerate(states)]
    image = build(vms, 1 << states[0].page_shift, order, layouts=ALL_LAYOUTS[layouts])
    kernel = KernelSpace(image.memory, image.profile)
    return collect(kernel, vm_list(kernel))


def l1_leaves(state: State, dword: int) -> dict[int, Leaf]:
    """Return the leaves of a table of L1, found by reading all of it."""
    found: dict[int, Leaf] = {}
    root = pte.partition_root(dword)
    assert root is not None
    tables = [(root.table, root.bits, 0, pte.TREE_BITS)]
    while tables:
        table, bits, base, shift = tables.pop()
        shift -= bits
        for place in sorted(state.l1_memory):
            if not 0 <= place - table < (8 << bits):
                continue
            entry, address = state.l1_memory[place], base + ((place - table) >> 3 << shift)
            if entry & pte.VALID and entry & pte.LEAF:
                found[address] = Leaf(address, entry, shift)
            elif entry & pte.VALID:
                below = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
                tables.append((*below, address, shift))
    return found


def assert_equal(vm: Vm, state: State) -> None:
    """Compare everything that memory holds."""
    assert (vm.lpid, vm.l1_ptcr, vm.locked, vm.gaps) == (state.lpid, state.ptcr, False, ())
    assert {slot.gfn: tuple(slot.words.tolist()) for slot in vm.rmaps} == {
        gfn: slot.words for gfn, slot in shown(state).slots()
    }
    assert vm.rmaps.problems == ()
    assert {(s.id, s.base_gfn, s.npages, s.userspace_addr, s.flags) for s in vm.memslots} == {
        (s.id, s.base_gfn, s.npages, s.hva, s.flags) for s in state.memslots.values()
    }
    assert leaves_of(vm.host) == state.host.leaves
    assert {nested.lpid for nested in vm.nested} == set(state.guests)
    for nested in vm.nested:
        guest = state.guests[nested.lpid]
        assert (nested.l1_lpid, nested.shadow_lpid, nested.refcnt, nested.l1_gr_to_hr) == (
            guest.l1_lpid,
            guest.shadow_lpid,
            guest.refcnt,
            guest.l1_gr_to_hr,
        )
        assert nested.process_table == guest.process_table
        assert leaves_of(nested.shadow) == guest.shadow.leaves
        if guest.l1_gr_to_hr:
            assert nested.l1 is not None
            assert leaves_of(nested.l1) == l1_leaves(state, guest.l1_gr_to_hr)
        else:
            assert nested.l1 is None


def specified(state: State) -> Counter[str]:
    """Return how often each invariant that memory can show is broken.

    The checks judge by the walk of the kernel as it is, and report R and C
    and L1's tables whether or not there is an excuse.
    """
    judged = replace(shown(state), rules=AS_IT_IS, hardware_sets_rc=False)
    found = broken(judged, lambda lpid, address: True)
    return Counter(item.invariant for item in found if item.invariant not in BEYOND_MEMORY)


def checked(snapshot: Snapshot) -> list[Counter[str]]:
    counted = []
    for vm in judge(snapshot).vms:
        found = Counter(finding.invariant for finding in vm.findings)
        found.update({pending.invariant.id: pending.count for pending in vm.pending})
        counted.append(found)
    return counted


@pytest.mark.slow
@settings(max_examples=examples(100), deadline=None)
@given(steps, READINGS, st.sampled_from([12, 16]), ORDERS, st.sampled_from(KERNELS), st.booleans())
def test_a_state_comes_back_and_is_judged_alike(
    done: list[Step], rules: Rules, page_shift: int, order: str, layouts: str, hardware: bool
) -> None:
    state = made(done, rules, page_shift, hardware_sets_rc=hardware)
    snapshot = written([state], order, layouts)
    (vm,) = snapshot.vms
    assert_equal(vm, state)
    (found,) = checked(snapshot)
    assert found == specified(state)
    for invariant in found:
        event(invariant)


@pytest.mark.slow
@pytest.mark.parametrize("layouts", KERNELS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("page_shift", [12, 16])
def test_two_vms_come_back(page_shift: int, order: str, layouts: str) -> None:
    states = []
    for lpid in (1, 5):
        world = World(page_shift, MUST_HOLD, hardware_sets_rc=False)
        del world.vm.partition[1]
        world.vm.lpids = {1, 2, 3, 4, 5} if lpid == 5 else {1}
        world.vm.lpid = lpid
        for l2, l1 in ((0, 0x4000_0000), (0x1_0000, 0x4000_0000), (0x2_0000, 0x4020_0000)):
            world.put(lpid & 1, l2, l1, 12, 7, Access.WRITE)
        states.append(world.vm)
    snapshot = written(states, order, layouts)
    for vm, state in zip(snapshot.vms, states, strict=True):
        assert_equal(vm, state)
        assert len(vm.rmaps.word) == 3
    assert checked(snapshot) == [specified(state) for state in states]
