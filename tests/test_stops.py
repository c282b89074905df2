"""Stops at random moments: which of them are alarms, and the plan of the campaign."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fixtures.lab import machine
from fixtures.lab.activities import ACTIVITIES
from fixtures.lab.expectation import Expectation, Leaf, Memslot
from fixtures.lab.stops import PLAN
from fixtures.lab.tally import NOTHING_HALF_DONE, Tally
from inspector.checks.verdict import judge
from inspector.kvm.snapshot import Gap, Part, Snapshot
from inspector.moment import Again
from inspector.structures.radix import LeafTable
from tests.fixtures import SMALL, opened


def changed(**members: Any) -> Snapshot:
    """Return the snapshot of a capture, with members of its VM replaced."""
    before = opened(SMALL).snapshot
    (vm,) = before.vms
    return replace(before, vms=(replace(vm, **members),))


def expected(snapshot: Snapshot) -> Expectation:
    """Return the expectation of an exerciser that has made exactly this snapshot."""
    (vm,) = snapshot.vms
    slot = vm.memslots[0]
    leaves = [
        Leaf(0, nested.lpid, address, 0, shift, 7, False)
        for nested in vm.nested
        for address, shift in zip(
            nested.shadow.address.tolist(), nested.shadow.shift.tolist(), strict=True
        )
    ]
    return Expectation(
        memslots=[Memslot(0, 0, slot.base_gfn, slot.npages, slot.userspace_addr, 0)],
        slots={(0, s.gfn): [int(word) for word in s.words] for s in vm.rmaps},
        leaves=leaves,
    )


def test_a_consistent_stop_is_no_alarm() -> None:
    tally = Tally()
    assert tally.take(judge(changed()), 3) is None
    columns = tally.columns()
    assert (columns["runs"], columns["failed"], columns["tries at most"]) == (1, 0, 3)
    assert columns["VMs"] == "1 to 1"
    assert columns["entries"] == f"{tally.entries} to {tally.entries}"
    assert tally.entries > 100


def test_a_stop_with_a_lock_held_is_named_by_what_is_half_done() -> None:
    tally = Tally()
    tally.noted(Again.LOCKED)
    assert tally.take(judge(changed(locked=True)), 1) is None
    assert tally.take(judge(changed(locked=True, host=LeafTable.empty())), 1) is None
    assert tally.half_done[NOTHING_HALF_DONE] == 1
    (other,) = set(tally.half_done) - {NOTHING_HALF_DONE}
    assert "shadow-leaf-mapped" in other
    l1 = Gap("L1 has thrown its table away", Part.L1)
    assert tally.take(judge(changed(gaps=(l1,))), 1) is None
    columns = tally.columns()
    assert columns["not read"] == "L1's tables: 1"
    assert (columns["mid-update"], columns["failed"]) == (2, 0)
    assert columns["made again: lock held"] == 1


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"host": LeafTable.empty()}, "violations: shadow-leaf-mapped"),
        ({"gaps": (Gap("a page is missing", Part.SHADOW, whole=True),)}, "a page is missing"),
        (
            {"locked": True, "gaps": (Gap("a page is missing", Part.SHADOW, whole=True),)},
            "is missing",
        ),
    ],
)
def test_anything_else_is_an_alarm(members: dict[str, Any], said: str) -> None:
    tally = Tally()
    alarm = tally.take(judge(changed(**members)), 1)
    assert alarm is not None
    assert said in alarm
    assert tally.columns()["failed"] == 1


def test_another_word_than_expected_is_an_alarm() -> None:
    snapshot = changed()
    right = expected(snapshot)
    tally = Tally()
    tally.compare(snapshot, right)
    assert (tally.compared, tally.alarms) == (1, [])
    where = next(iter(right.slots))
    tally.compare(snapshot, replace(right, slots={**right.slots, where: [1]}))
    tally.compare(snapshot, replace(right, leaves=right.leaves[1:]))
    tally.compare(snapshot, replace(right, errors=["lpid 1 ended", "the kernel said: BUG:"]))
    tally.compare(replace(snapshot, vms=()), right)
    assert [alarm.split(" ")[2] for alarm in tally.alarms] == [
        "words",
        "leaves",
        "lpid",
        "words",
        "leaves",
    ]
    assert tally.columns()["kernel warned"] == "BUG:"


def test_the_plan_has_every_activity_and_a_thousand_stops() -> None:
    assert len({place.what for place in PLAN}) == len(PLAN)
    kernels = {place.kernel for place in PLAN}
    assert {"6.12-4k", "6.12-64k", "sid-4k"} <= kernels
    assert {place.activity for place in PLAN} == set(ACTIVITIES)
    assert sum(place.stops for place in PLAN) >= 1000
    assert sum(place.stops for place in PLAN if place.vcpus > 1) >= 1000
    assert all(place.machine in machine.MACHINES for place in PLAN)
