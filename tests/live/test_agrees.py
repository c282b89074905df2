"""The state read from a real machine equals the state that the exerciser has made."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fixtures.lab.expectation import Expectation
from fixtures.lab.machine import stopped_times
from fixtures.lab.opinions.byinspector import state
from fixtures.lab.opinions.byradix import tables_of
from fixtures.lab.opinions.compare import compare, shown, shown_by_debugfs
from fixtures.lab.specified import leaves_read, specified
from inspector.capture import Capture, write_capture
from inspector.checks.verdict import Verdict, judge
from inspector.kvm.snapshot import Snapshot
from inspector.options import Options
from inspector.session import Acquired, acquire
from tests.live.tools import Lab, assert_words_agree, document, leaves_of, slots_of, vm_at

MACHINES = ("powernv9", "pseries")
READ_PATHS = ("direct", "gdb")


def _acquire(lab: Lab, read_path: str = "auto") -> Acquired:
    state = lab.machine.state
    options = Options(kernel=Path(state.vmlinux), modules=Path(state.modules), read_path=read_path)
    return acquire(lab.target, options)


def _assert_agrees(snapshot: Snapshot, expected: Expectation) -> None:
    assert expected.ok
    assert_words_agree(snapshot, expected)
    for known in expected.vms:
        slot = next(slot for slot in expected.memslots if slot.vm == known.index)
        vm = vm_at(snapshot, slot.hva)
        leaves = {(o.lpid, o.l2, o.shift) for o in expected.leaves if o.vm == known.index}
        assert leaves_of(vm) == leaves
    _assert_specified(snapshot, expected)
    _assert_as_debugfs_shows(snapshot, expected)


def _assert_as_debugfs_shows(snapshot: Snapshot, expected: Expectation) -> None:
    """Compare L0's tables and the shadow tables with L0's own debugfs files."""
    vms = state(snapshot)
    theirs = tables_of(expected, vms)
    assert len(theirs) == sum(known.radix for known in expected.vms)
    assert compare(shown(vms), shown_by_debugfs(theirs)).differences == []


def _assert_specified(snapshot: Snapshot, expected: Expectation) -> None:
    """Compare the machine with the state that the specification derives from the operations."""
    made = specified(expected.operations, expected.page_size)
    for known in expected.vms:
        if known.radix:
            slot = next(slot for slot in expected.memslots if slot.vm == known.index)
            vm = vm_at(snapshot, slot.hva)
            assert slots_of(vm) == made[known.index].slots()
            assert leaves_read(vm) == made[known.index].leaves()


@pytest.mark.parametrize("read_path", READ_PATHS)
@pytest.mark.parametrize("machine", MACHINES)
def test_words_order_and_leaves(boot: Callable[..., Lab], machine: str, read_path: str) -> None:
    lab = boot("mixed", machine)
    acquired = _acquire(lab, read_path)
    _assert_agrees(acquired.snapshot, lab.machine.expectation)
    assert len(lab.machine.expectation.slots) > 50
    assert judge(acquired.snapshot).verdict is Verdict.CONSISTENT
    lab.assert_untouched()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario", ["random", "two-vms", "memslots", "thp", "hugetlb", "l1-sizes", "high-pages"]
)
def test_other_scenarios(boot: Callable[..., Lab], scenario: str) -> None:
    lab = boot(scenario)
    acquired = _acquire(lab)
    _assert_agrees(acquired.snapshot, lab.machine.expectation)
    assert judge(acquired.snapshot).verdict is Verdict.CONSISTENT


@pytest.mark.parametrize("machine", MACHINES)
def test_capture_of_the_same_stop(boot: Callable[..., Lab], machine: str, tmp_path: Path) -> None:
    acquired = _acquire(boot("mixed", machine))
    path = tmp_path / "same.core.zst"
    write_capture(path, Capture(acquired.memory, acquired.profile, {}))
    again = acquire(str(path), Options()).snapshot
    for live, offline in zip(acquired.snapshot.vms, again.vms, strict=True):
        assert slots_of(live) == slots_of(offline)
        for one, other in zip(live.nested, offline.nested, strict=True):
            assert np.array_equal(one.shadow.entry, other.shadow.entry)
            assert one.l1 is not None
            assert other.l1 is not None
            assert np.array_equal(one.l1.entry, other.l1.entry)
        assert np.array_equal(live.host.entry, offline.host.entry)


@pytest.mark.parametrize("read_path", READ_PATHS)
def test_the_command_line(boot: Callable[..., Lab], tmp_path: Path, read_path: str) -> None:
    lab = boot("mixed")
    path = tmp_path / "lab.core.zst"
    option = ("--read-path", read_path)
    live = lab.run("rmap", "--jsonl", *option)
    taken = lab.run("capture", "-o", str(path), *option)
    assert (live.returncode, taken.returncode) == (0, 0)
    assert path.stat().st_size < (300 << 10)
    rows = [json.loads(line) for line in live.stdout.splitlines()]
    expected = lab.machine.expectation.slots
    assert {int(r["gfn"], 16): [int(w, 16) for w in r["words"]] for r in rows} == {
        gfn: words for (_, gfn), words in expected.items()
    }
    checked = lab.run("check", "--json", *option)
    verdict = document(checked)
    assert (checked.returncode, verdict["verdict"]) == (0, "consistent")
    assert verdict["target"]["stopped_ms"] > 0
    assert "Traceback" not in live.stderr + taken.stderr
    lab.assert_untouched()


def test_the_kernel_is_found_by_itself(
    boot: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = boot("mixed")
    monkeypatch.setenv("INSPECTOR_KERNEL_PATH", str(Path(lab.machine.state.vmlinux).parent))
    snapshot = acquire(lab.target, Options()).snapshot
    _assert_agrees(snapshot, lab.machine.expectation)


@pytest.mark.parametrize("read_path", READ_PATHS)
def test_the_stops_reported_are_those_qemu_saw(boot: Callable[..., Lab], read_path: str) -> None:
    lab = boot("mixed")
    lab.machine.qmp.events()
    reported = document(lab.run("check", "--json", "--read-path", read_path))["target"]
    stops = stopped_times(lab.machine.qmp.events(wait=0.5))
    assert len(stops) == reported["stops"]
    assert sum(stops) * 1000 < 2 * reported["stopped_ms"]


def test_qemus_own_dump(boot: Callable[..., Lab], tmp_path: Path) -> None:
    lab = boot("mixed")
    path = tmp_path / "qemu.core"
    qmp = lab.machine.qmp
    qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)
    while qmp.execute("query-dump")["status"] == "active":
        time.sleep(0.1)
    assert qmp.execute("query-dump")["status"] == "completed"
    state = lab.machine.state
    snapshot = acquire(
        str(path), Options(kernel=Path(state.vmlinux), modules=Path(state.modules))
    ).snapshot
    _assert_agrees(snapshot, lab.machine.expectation)
    assert judge(snapshot).verdict is Verdict.CONSISTENT
