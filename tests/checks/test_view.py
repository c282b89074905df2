"""The checks over arrays agree with the model, entry by entry and leaf by leaf."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from fixtures.mutations.plain import Indexed
from inspector.checks.rights import L1_STATES
from inspector.checks.view import STATES, CheckedVm, ModelView
from inspector.kvm.snapshot import Memslot, Vm
from inspector.model.memslots import holder
from inspector.model.rights import Excess, L1State, judge_rights, misplaced
from inspector.model.slot import kernel_walk
from inspector.model.vm import (
    EntryState,
    LeafJudgement,
    LeafState,
    VmState,
    judge_entry,
    judge_leaf,
)
from tests.builders import made_states, snapshot_vm, state_of, vm_states
from tests.fixtures import SPREAD, opened
from tests.profiles import examples

VIEWED = 500
"""About how many leaves of a table are also judged through the snapshot's own ``ModelView``."""


Met = EntryState | LeafState | L1State | str


def compare(vm: Vm, state: VmState) -> Counter[Met]:
    """Compare every answer; return how often each state was met."""
    checked = CheckedVm(vm, state.page_shift)
    met: Counter[Met] = Counter()
    entries = [
        (gfn, word, position < len(kernel_walk(words)))
        for gfn, words in sorted(state.slots.items())
        for position, word in enumerate(words)
    ]
    assert checked.rmaps.word.tolist() == [word for _, word, _ in entries]
    assert checked.reachable.tolist() == [reachable for *_, reachable in entries]
    states = [judge_entry(state, gfn, word) for gfn, word, _ in entries]
    assert [STATES[code] for code in checked.state] == states
    met.update(states)

    view = ModelView(checked)
    suspects = {(s.nested.lpid, s.leaf.address): s for s in checked.suspects}
    for nested, rights in zip(vm.nested, checked.rights, strict=True):
        covered = rights.covered
        leaves = sorted(state.shadows[nested.lpid].leaves.values())
        every = 1 + len(leaves) // VIEWED
        judgements = {leaf: judge_leaf(state, nested.lpid, leaf) for leaf in leaves}
        for row, leaf in enumerate(leaves):
            judgement = judgements[leaf]
            met[judgement.state] += 1
            assert covered[row] == (judgement.state is LeafState.COVERED)
            if row % every == 0:
                assert as_sets(judge_leaf(view, nested.lpid, leaf)) == as_sets(judgement)
            suspect = suspects.pop((nested.lpid, leaf.address), None)
            assert (suspect is None) == bool(covered[row])
            if suspect is not None:
                assert (suspect.row, suspect.leaf) == (row, leaf)
                assert as_sets(suspect.judgement) == as_sets(judgement)
    assert not suspects
    met.update(compare_rights(checked, state))
    return met


def compare_rights(checked: CheckedVm, state: VmState) -> Counter[Met]:
    """Compare the rights of every leaf with the model's; return how often each state was met."""
    met: Counter[Met] = Counter()
    pending = 0
    for nested, rights in zip(checked.vm.nested, checked.rights, strict=True):
        for row, leaf in enumerate(sorted(state.shadows[nested.lpid].leaves.values())):
            judgement = judge_rights(state, nested.lpid, leaf)
            l1_state = L1_STATES[int(rights.l1_state[row])]
            excess = Excess(
                bool(rights.larger[row]),
                int(rights.permissions[row]),
                bool(rights.attributes[row]),
                int(rights.recorded[row]),
            )
            if judgement is None:
                assert excess == (False, 0, False, 0)
                assert (l1_state, int(rights.l1_recorded[row])) == (L1State.UNKNOWN, 0)
                continue
            assert excess == judgement.excess
            assert (l1_state, int(rights.l1_recorded[row])) == (
                judgement.l1_state,
                judgement.l1_recorded,
            )
            met.update([l1_state, *(name for name in Excess._fields if getattr(excess, name))])
            met["l1_recorded"] += bool(judgement.l1_recorded)
            pending += l1_state not in (L1State.AGREES, L1State.UNKNOWN)
    assert checked.pending == pending
    return met


def compare_places(checked: CheckedVm, state: VmState) -> Counter[str]:
    """Compare the slots of live entries, and which of L0's leaves a memslot holds."""
    met: Counter[str] = Counter()
    entries = [(gfn, word) for gfn, words in sorted(state.slots.items()) for word in words]
    for row, (gfn, word) in enumerate(entries):
        first = misplaced(state, gfn, word)
        assert checked.misplaced[row] == (first is not None)
        met["misplaced"] += first is not None
    for row, leaf in enumerate(sorted(state.host.leaves.values())):
        found = holder(checked.vm.memslots, leaf, state.page_shift)
        assert checked.in_memslot[row] == (found is not None)
        met["held" if found else "not held"] += 1
    return met


def as_sets(judgement: LeafJudgement) -> tuple[object, ...]:
    """Return a judgement as sets, because the order of its parts has no meaning."""
    return (
        judgement.state,
        set(judgement.entries),
        set(judgement.backing),
        *judgement[3:],
    )


@pytest.mark.slow
def test_arrays_and_model_agree_in_every_state() -> None:
    met: Counter[Met] = Counter()

    @settings(max_examples=examples(450), derandomize=True, database=None)
    @given(vm_states(odd_bits=True) | made_states())
    def run(state: VmState) -> None:
        met.update(compare(snapshot_vm(state), state))

    run()
    assert {one for one in met if met[one]} == {
        *EntryState,
        *LeafState,
        *L1State,
        *Excess._fields,
        "l1_recorded",
    }


@pytest.mark.slow
def test_they_agree_on_where_things_stand() -> None:
    met: Counter[str] = Counter()

    @settings(max_examples=examples(120), derandomize=True, database=None)
    @given(made_states())
    def run(state: VmState) -> None:
        slots = (Memslot(0, 0, 0, 2, 0, 0, 1), Memslot(0, 1, 512, 1 << 30, 0, 0, 1))
        met.update(compare_places(CheckedVm(snapshot_vm(state, slots), state.page_shift), state))

    run()
    assert met["misplaced"]
    assert met["held"]
    assert met["not held"]


@pytest.mark.slow
@pytest.mark.parametrize("path", SPREAD, ids=lambda path: path.name)
def test_they_agree_on_every_fixture(path: Path) -> None:
    acquired = opened(path)
    for vm in acquired.snapshot.vms:
        page_shift = acquired.snapshot.page_shift
        state = Indexed.of(state_of(vm, page_shift))
        met = compare(vm, state)
        known = sum(met[one] for one in (*EntryState, *LeafState))
        assert known == vm.rmaps.word.size + sum(len(n.shadow) for n in vm.nested)
        places = compare_places(CheckedVm(vm, page_shift), state)
        assert (places["held"], places["not held"]) == (len(vm.host), 0)


def test_an_empty_vm_has_nothing_to_say() -> None:
    checked = CheckedVm(snapshot_vm(VmState(12)), 12)
    assert checked.suspects == ()
    assert checked.state.dtype == np.int8
    assert checked.state.size == 0
