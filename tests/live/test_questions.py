"""The questions about changes and activity, on a machine that is held at its steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.lab.captures import expectation_json
from fixtures.lab.expectation import Operation
from fixtures.lab.machine import Machine, MachineSpec, stopped_times
from fixtures.lab.specified import SpecifiedVm, specified
from inspector import encoding, pte
from inspector.kvm.snapshot import Snapshot
from inspector.model.vm import EntryState, Leaf
from inspector.options import Options
from inspector.questions.changes import Change, LeafChange, LeafKind, TableName
from inspector.questions.difference import difference
from inspector.session import acquire
from tests.live.tools import Lab, as_published, document, inspector

STEPS = (6, 9, 32, 34, 47, 67, 72, 82, 84, 94, 97)
"""Operations of the scenario at which it is held; they are logged before they are done."""

LOGGED_BEFORE = {"map", "unmap", "tlbie", "populate", "create-lpid", "clear-lpid"}
STALE_AFTER = {32: (1, 0x100B000)}
"""The L2 page that L1 unmaps and invalidates in the step from there."""


@pytest.fixture(scope="module")
def held(_own_state: None) -> Iterator[Lab]:
    with Machine.start(MachineSpec(scenario="stale", hold_at=STEPS, name="steps")) as machine:
        yield Lab(machine)


def snapshot_of(lab: Lab) -> Snapshot:
    state = lab.machine.state
    return acquire(
        lab.target, Options(kernel=Path(state.vmlinux), modules=Path(state.modules))
    ).snapshot


def done_by(lab: Lab) -> list[Operation]:
    """Return the operations that are done where the machine is held."""
    *done, waiting = lab.machine.expectation.operations
    assert waiting.kind in LOGGED_BEFORE
    return done


def specification(operations: list[Operation], page_size: int) -> SpecifiedVm:
    return specified(operations, page_size)[0]


def entries(vm: SpecifiedVm) -> Counter[tuple[int, int]]:
    return Counter(
        (gfn, word & ~encoding.SINGLE_ENTRY) for gfn, found in vm.slots().items() for word in found
    )


def leaves(vm: SpecifiedVm) -> dict[tuple[int, int], tuple[int, ...]]:
    return {
        (leaf.lpid, leaf.l2): (leaf.shift, leaf.l1 or 0, leaf.permissions) for leaf in vm.leaves()
    }


def permissions(leaf: Leaf | None) -> int:
    return leaf.entry & pte.PERMISSIONS if leaf else 0


def more_than_rc(change: LeafChange) -> bool:
    """Say whether more changed than R and C, which the hardware sets and no operation names."""
    same = permissions(change.before) == permissions(change.after)
    return change.kind is not LeafKind.BITS or not same


def test_a_step_is_what_the_specification_says(held: Lab, tmp_path: Path) -> None:
    captures = [str(tmp_path / f"{name}.core.zst") for name in "ab"]
    for capture in captures:
        assert held.run("capture", "-o", capture).returncode == 0
    for other in (captures[1], held.target):
        twice = inspector("diff", captures[0], other, *held.files)
        assert (twice.returncode, twice.stderr) == (0, "")
        assert twice.stdout.splitlines()[-1] == "no difference"

    page_size = held.machine.expectation.page_size
    done, before = done_by(held), snapshot_of(held)
    for step in STEPS[1:]:
        assert held.machine.step()
        then, earlier = specification(done, page_size), len(done)
        done, after = done_by(held), snapshot_of(held)
        now = specification(done, page_size)
        assert len(done) == step
        (found,) = difference(before, after).vms
        assert found.unknown == ()
        added = Counter((slot.gfn, word) for slot in found.slots for word in slot.added)
        gone = Counter((slot.gfn, word) for slot in found.slots for word in slot.gone)
        assert added == entries(now) - entries(then)
        assert gone == entries(then) - entries(now)
        was, made = leaves(then), leaves(now)
        assert {
            (change.lpid, change.address)
            for change in found.leaves
            if change.table is TableName.SHADOW and more_than_rc(change)
        } == {key for key in was.keys() | made.keys() if was.get(key) != made.get(key)}
        guests = [{f"nested guest {lpid}" for lpid in vm.state.guests} for vm in (then, now)]
        assert {c.owner for c in found.fields if c.change is Change.CAME} == guests[1] - guests[0]
        assert {c.owner for c in found.fields if c.change is Change.GONE} == guests[0] - guests[1]
        if earlier in STALE_AFTER:
            (turned,) = found.turned
            assert encoding.decode(turned.word) == STALE_AFTER[earlier]
            assert (turned.before, turned.after) == (EntryState.LIVE, EntryState.NO_LEAF)
            assert added == gone == Counter()
        before = after
    changed = inspector("diff", captures[0], held.target, *held.files)
    assert changed.returncode == 1
    held.assert_untouched()


def test_the_end_is_what_the_exerciser_expects(held: Lab, tmp_path: Path) -> None:
    while held.machine.step():
        pass
    wanted = tmp_path / "expected.json"
    wanted.write_text(json.dumps(expectation_json(held.machine.expectation)))
    done = held.run("diff", "--expected", str(wanted), "--json")
    assert done.returncode == 0, done.stdout
    assert document(done)["same"]


def test_watched_until_interrupted(held: Lab) -> None:
    while held.machine.step():
        pass
    checked = document(held.run("check", "--json"))["vms"][0]
    held.machine.qmp.events()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "inspector", "watch", held.target, *held.files),
            *("--jsonl", "--rate", "5"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert process.stdout is not None
    rows = [as_published(json.loads(process.stdout.readline())) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    rows += [json.loads(line) for line in rest.splitlines()]
    assert (process.returncode, errors) == (0, "")
    assert [row["number"] for row in rows] == list(range(len(rows)))
    for row in rows:
        (vm,) = row["vms"]
        for name in ("slots", "entries", "live", "stale", "shadow_leaves", "stale_by_reason"):
            assert vm[name] == checked[name]
        assert vm["longest_lists"][0]["entries"] == checked["longest_list"]
    assert [row["vms"][0]["inserted"] for row in rows] == [None] + [0] * (len(rows) - 1)
    # the stops of attaching, of detaching and of an interrupted sample come on top
    seen = stopped_times(held.machine.qmp.events(wait=0.5))
    assert len(seen) >= sum(row["stops"] for row in rows)
    held.assert_untouched()
