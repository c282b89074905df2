"""A sample describes a state, and the changes since the sample before."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner
from hypothesis import given
from rich.console import Console

from inspector import encoding, pte
from inspector.checks.verdict import judge
from inspector.cli import cli
from inspector.kvm.snapshot import Snapshot
from inspector.model.vm import VmState
from inspector.reports.watch import HEADING, Picture, curve, sample_json, sample_line
from inspector.watch import LONGEST, Sample, sampled
from tests.builders import snapshot_vm, vm_states
from tests.fixtures import SMALL, opened


def host(*states: VmState) -> Snapshot:
    vms = tuple(snapshot_vm(state, number=i) for i, state in enumerate(states))
    return Snapshot(release="6.12", build_id="id", page_shift=12, vms=vms)


def sample_of(snapshot: Snapshot, before: Snapshot | None = None) -> Sample:
    return Sample(
        number=3,
        time=datetime(2026, 1, 2, tzinfo=UTC),
        seconds=3.5,
        stopped_seconds=0.0123,
        stops=1,
        took_seconds=0.2,
        vms=sampled(snapshot, before, 0.5),
        notes=(),
        target="gdb:e\x1b[2Jvil:1",
        release="6.12\x1b[31m",
        read_path="the memory of QEMU process 1",
    )


def entries(state: VmState) -> Counter[tuple[int, int]]:
    return Counter(
        (gfn, word & ~encoding.SINGLE_ENTRY) for gfn, found in state.slots.items() for word in found
    )


def made(state: VmState) -> set[tuple[int, int, int, int]]:
    """Return the shadow leaves without their R and C bits."""
    return {
        (lpid, leaf.address, leaf.entry & ~pte.RECORDED, leaf.shift)
        for lpid, table in state.shadows.items()
        for leaf in table.leaves.values()
    }


@pytest.mark.slow
@given(vm_states(12), vm_states(12))
def test_what_came_about(old: VmState, new: VmState) -> None:
    (vm,) = sampled(host(new), host(old), 0.5)
    before, after = entries(old), entries(new)
    assert vm.added == (after - before).total()
    assert vm.gone == (before - after).total()
    then, now = made(old), made(new)
    assert vm.leaves == len(now - then)
    assert vm.faults_per_second == len(now - then) / 0.5
    lengths = sorted((len(found) for found in new.slots.values() if len(found) > 1), reverse=True)
    assert [one.entries for one in vm.longest] == lengths[:LONGEST]


def test_the_counts_are_those_of_check() -> None:
    snapshot = opened(SMALL).snapshot
    (vm,) = sampled(snapshot, None, 0.0)
    (judged,) = judge(snapshot).vms
    assert vm.counts == judged.counts
    assert (vm.added, vm.leaves, vm.faults_per_second) == (None, None, None)
    (again,) = sampled(snapshot, snapshot, 0.5)
    assert (again.added, again.gone, again.leaves) == (0, 0, 0)


def test_a_vm_that_came_is_compared_with_nothing() -> None:
    first, second = opened(SMALL).snapshot, opened(SMALL).snapshot
    other = replace(second.vms[0], address=1, pid=1, lpid=77)
    samples = sampled(replace(first, vms=(*first.vms, other)), first, 1.0)
    assert [(vm.lpid, vm.added) for vm in samples] == [(first.vms[0].lpid, 0), (77, None)]
    assert sampled(replace(first, vms=()), first, 1.0) == ()


def test_the_three_forms_say_the_same() -> None:
    snapshot = opened(SMALL).snapshot
    sample = sample_of(snapshot, snapshot)
    row = sample_json(sample)
    json.dumps(row)
    assert row["stopped_ms"] == 12.3
    (vm,) = row["vms"]
    (line,) = sample_line(sample)
    assert len(line) == len(HEADING)
    assert line.split() == [
        "3.5s",
        "1",
        str(vm["nested"]),
        str(vm["entries"]),
        str(vm["live"]),
        str(vm["stale"]),
        str(vm["shadow_leaves"]),
        "32",
        "0",
        "0",
        "0.0",
        "12.3ms",
    ]
    shown = io.StringIO()
    Console(file=shown, width=160, force_terminal=False).print(Picture().of(sample))
    for number in (vm["entries"], vm["live"], vm["stale"], "12.3 ms", "0.0"):
        assert str(number) in shown.getvalue()


def test_what_a_target_says_of_itself_is_shown_and_not_sent() -> None:
    shown = io.StringIO()
    sample = sample_of(opened(SMALL).snapshot)
    Console(file=shown, width=160, force_terminal=False).print(Picture().of(sample))
    assert "\x1b" not in shown.getvalue()
    assert "\\x1b[2J" in shown.getvalue()


def test_a_host_without_vms() -> None:
    sample = sample_of(Snapshot(release="6.12", build_id="id", page_shift=12, vms=()))
    (line,) = sample_line(sample)
    assert "no VMs" in line
    assert line.endswith("12.3ms")


def test_curves() -> None:
    assert curve([5]) == "▁  5..5"
    assert curve([0, 50, 100]) == "▁▄█  0..100"


def test_only_a_live_machine_can_be_watched() -> None:
    result = CliRunner().invoke(cli, ["watch", str(SMALL), "--count", "1"])
    assert "gdb:HOST:PORT" in str(result.exception)
    assert CliRunner().invoke(cli, ["watch", "gdb:x:1", "--rate", "0"]).exit_code == 2


def test_a_vm_that_is_the_same_is_not_counted_again() -> None:
    snapshot = opened(SMALL).snapshot
    first = sampled(snapshot, None, 0.0)
    expected = sampled(snapshot, snapshot, 0.5)
    (vm,) = sampled(snapshot, snapshot, 0.5, first)
    assert (vm,) == expected
    assert vm.counts is first[0].counts
