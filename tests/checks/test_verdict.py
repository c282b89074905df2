"""Verdicts: what is concluded, and when nothing can be concluded."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from inspector.checks.base import all_invariants
from inspector.checks.verdict import Judgement, Verdict, judge
from inspector.kvm.snapshot import Gap, LinkProblem, Part, Snapshot, Vm
from inspector.model.vm import EntryState, LeafState, VmState, judge_entry, judge_leaf
from inspector.structures.radix import TableProblem
from tests.builders import leaf, snapshot_vm, table, vm_states, words

GOOD = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x5000), (2, 0x6000))},
    {1: table(leaf(0x5000, 0x40_0000))},
)
LOST = VmState(12, GOOD.host, {}, GOOD.shadows)


def judged(*vms: Vm, page_shift: int = 12) -> Judgement:
    return judge(Snapshot(release="release", build_id="id", page_shift=page_shift, vms=vms))


def test_a_good_vm_is_consistent() -> None:
    judgement = judged(snapshot_vm(GOOD))
    assert judgement.verdict is Verdict.CONSISTENT
    counts = judgement.vms[0].counts
    assert (counts.slots, counts.entries, counts.singles, counts.lists) == (1, 2, 0, 1)
    assert (counts.longest, counts.live, counts.shadow_leaves, counts.host_leaves) == (2, 1, 1, 1)
    assert counts.stale == {EntryState.NO_GUEST: 1}


def test_the_cost_of_lists() -> None:
    lengths = {1: 3, 4: 2, 6: 1, 7: 3, 8: 5, 9: 2, 11: 4}
    slots = {
        gfn: words(*((lpid + 1, 0x1000 * gfn) for lpid in range(length)))
        for gfn, length in lengths.items()
    }
    vm = snapshot_vm(VmState(12, GOOD.host, slots, {}))
    counts = judged(vm).vms[0].counts
    assert counts.longest_lists == ((8, 5), (11, 4), (1, 3), (7, 3), (4, 2))
    nodes = [int(node) for node in vm.rmaps.node if node]
    assert counts.nodes == len(nodes) == sum(lengths.values()) - len(lengths)
    assert counts.node_pages == len({node >> 12 for node in nodes})


def test_no_vms_are_consistent() -> None:
    assert judged().verdict is Verdict.CONSISTENT


@pytest.mark.parametrize(
    ("verdicts", "worst"),
    [
        ((GOOD, GOOD), Verdict.CONSISTENT),
        ((GOOD, LOST), Verdict.VIOLATIONS),
    ],
)
def test_the_worst_vm_decides(verdicts: tuple[VmState, ...], worst: Verdict) -> None:
    judgement = judged(*(snapshot_vm(state, number=i) for i, state in enumerate(verdicts)))
    assert judgement.verdict is worst
    assert len(judgement.findings) == sum(len(vm.findings) for vm in judgement.vms)


def test_a_held_lock_concludes_nothing() -> None:
    for state in (GOOD, LOST):
        vm = replace(snapshot_vm(state), locked=True, mmu_lock=1)
        assert judged(vm).verdict is Verdict.INCONCLUSIVE
    violations = snapshot_vm(LOST, number=1)
    assert judged(vm, violations).verdict is Verdict.VIOLATIONS


def test_a_gap_concludes_nothing_only_where_it_is_needed() -> None:
    for part in Part:
        gap = Gap("something", part)
        judgement = judged(replace(snapshot_vm(GOOD), gaps=(gap,)))
        explains = part in (Part.L1, Part.PARTITION)
        assert (judgement.verdict is Verdict.CONSISTENT) is explains
        assert (judgement.verdict is Verdict.INCONCLUSIVE) is not explains
        (vm,) = judgement.vms
        assert vm.notes == ()
        assert {item.invariant.id for item in vm.not_judged} == {
            invariant.id for invariant in all_invariants() if part in invariant.reads
        }
        for item in vm.not_judged:
            assert item.gap == gap
            assert item.at_all is (part not in item.invariant.needs)
    (vm,) = judged(replace(snapshot_vm(GOOD), gaps=(Gap("a ring"),))).vms
    assert (vm.verdict, vm.notes, vm.not_judged) == (Verdict.CONSISTENT, ("a ring",), ())


def test_a_part_of_which_nothing_was_read_is_not_judged_at_all() -> None:
    gap = Gap("partition table", Part.PARTITION, whole=True)
    (vm,) = judged(replace(snapshot_vm(GOOD), gaps=(gap,))).vms
    assert [(item.invariant.id, item.at_all) for item in vm.not_judged] == [
        ("partition-entry", False)
    ]


def test_nothing_is_missed_where_something_was_not_read() -> None:
    gaps = (Gap("rmap array", Part.RMAPS),)
    lost = judged(replace(snapshot_vm(LOST), gaps=gaps))
    assert lost.verdict is Verdict.INCONCLUSIVE
    assert lost.findings == ()
    odd = VmState(12, GOOD.host, {1: (0x0010_0000_0000_5003,)}, GOOD.shadows)
    (finding,) = judged(replace(snapshot_vm(odd), gaps=gaps)).findings
    assert finding.invariant == "rmap-word"


def test_notes_say_why_there_is_nothing_to_see() -> None:
    empty = snapshot_vm(VmState(12))
    assert judged(empty).vms[0].notes == ("no nested guests",)
    (note,) = judged(replace(empty, nesting=False)).vms[0].notes
    assert "nesting is not enabled" in note
    (note,) = judged(replace(empty, radix=False)).vms[0].notes
    assert "hash-MMU guest" in note


@pytest.mark.slow
@given(vm_states(odd_bits=True))
def test_findings_are_what_the_model_finds(state: VmState) -> None:
    vm = snapshot_vm(state)
    (judgement,) = judged(vm, page_shift=state.page_shift).vms
    by_invariant: dict[str, int] = {}
    for finding in judgement.findings:
        by_invariant[finding.invariant] = by_invariant.get(finding.invariant, 0) + 1
        assert finding.evidence
        assert finding.summary
        assert finding.expected
    states = [
        judge_leaf(state, lpid, one).state
        for lpid, shadow in state.shadows.items()
        for one in shadow.leaves.values()
    ]
    expected = {
        "shadow-leaf-covered": states.count(LeafState.LOST) + states.count(LeafState.HIDDEN),
        "shadow-leaf-frame": states.count(LeafState.MOVED),
        "shadow-leaf-mapped": states.count(LeafState.UNMAPPED),
    }
    assert {name: by_invariant.get(name, 0) for name in expected} == expected
    live = [
        judge_entry(state, gfn, word) for gfn, found in state.slots.items() for word in found
    ].count(EntryState.LIVE)
    assert judgement.counts.live == live
    zero = 0xFFE if state.page_shift == 12 else 0xFFFE
    broken = any(word & zero for found in state.slots.values() for word in found)
    assert ("rmap-word" in by_invariant) == broken


def test_every_kind_of_link_problem_is_told() -> None:
    vm = snapshot_vm(GOOD)
    for kind in ("pointer", "nowhere", "cycle", "end"):
        problem = LinkProblem(0, kind, 0xC000_0000_0000_1000, 0x1234)
        (finding,) = judged(replace(vm, rmaps=replace(vm.rmaps, problems=(problem,)))).findings
        assert finding.invariant == "rmap-list"
        assert finding.evidence[1].address == 0xC000_0000_0000_1000


def test_only_malformed_tables_are_violations_not_missing_ones() -> None:
    vm = snapshot_vm(GOOD)
    for missing in (False, True):
        host = replace(vm.host, problems=(TableProblem(0, 0x1000, "odd", missing),))
        found = judged(replace(vm, host=host)).findings
        assert [finding.invariant for finding in found] == ["table-form"] * (not missing)


def test_invariants_are_told_apart_and_explained() -> None:
    found = all_invariants()
    assert len({invariant.id for invariant in found}) == len(found) == 32
    for invariant in found:
        assert invariant.statement.endswith(".")
        assert invariant.why.endswith(".")
        assert invariant.source
        assert invariant.needs <= invariant.reads
        assert invariant.reads


def test_what_two_vms_share_is_told_of_both() -> None:
    nodes = VmState(12, GOOD.host, {1: words((1, 0x5000), (2, 0x6000))}, GOOD.shadows)
    first, second = snapshot_vm(nodes), snapshot_vm(GOOD, number=1)
    shared = replace(
        second,
        lpid=first.lpid,
        rmaps=replace(second.rmaps, node=first.rmaps.node),
        nested=(replace(second.nested[0], shadow=first.nested[0].shadow),),
    )
    for found in judged(first, shared).vms:
        assert [finding.invariant for finding in found.findings] == [
            "rmap-node",
            "shadow-lpid",
            "table-shared",
        ]
    # The state of another VM that is half way through a change proves nothing.
    held = judged(first, replace(shared, locked=True, lpid=second.lpid))
    assert held.vms[0].verdict is Verdict.CONSISTENT


def test_memslots_that_overlap_are_told() -> None:
    (slot,) = snapshot_vm(GOOD).memslots
    rmap = slot.rmap + (1 << 40)
    slots = (
        slot,
        replace(slot, id=1, base_gfn=slot.npages - 1, rmap=rmap),
        replace(slot, id=2, base_gfn=1 << 40, rmap=2 * rmap - slot.rmap),
    )
    found = judged(snapshot_vm(GOOD, slots)).findings
    assert [finding.invariant for finding in found] == ["memslots"]
    assert "memslot 0 (gfn 0x0 to 0x3fffffff) and memslot 1" in found[0].summary
