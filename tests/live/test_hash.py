"""A real hash guest: every word of its array and every ring in L0's memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.checks.verdict import Verdict, judge
from inspector.options import Options
from inspector.reports.text import hash_problems
from inspector.session import acquire
from tests.live.tools import Lab, document

MACHINES = ("powernv9", "powernv10")


def _expected(lab: Lab) -> dict[int, tuple[int, list[int]]]:
    expectation = lab.machine.expectation
    assert expectation.ok, expectation.errors
    return {slot.gfn: (slot.word, list(slot.indices)) for slot in expectation.hash_slots}


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
@pytest.mark.parametrize("machine", MACHINES)
def test_words_and_rings(boot: Callable[..., Lab], machine: str, read_path: str) -> None:
    lab = boot("hash", machine)
    state = lab.machine.state
    options = Options(kernel=Path(state.vmlinux), modules=Path(state.modules), read_path=read_path)
    snapshot = acquire(lab.target, options).snapshot
    (vm,) = snapshot.vms
    assert vm.gaps == ()
    found = {slot.gfn: (slot.word, slot.indices.tolist()) for slot in vm.hash_rmaps}
    assert found == _expected(lab)
    assert not any(hash_problems(slot) for slot in vm.hash_rmaps)
    assert {0, 1, 2, 3, 5} <= {len(indices) for _, indices in found.values()}
    assert not len(vm.rmaps)
    assert judge(snapshot).verdict is Verdict.CONSISTENT
    lab.assert_untouched()


def test_the_command_line(boot: Callable[..., Lab], tmp_path: Path) -> None:
    lab = boot("hash")
    path = tmp_path / "hash.core.zst"
    live = lab.run("rmap", "--jsonl")
    taken = lab.run("capture", "-o", str(path))
    assert (live.returncode, taken.returncode) == (0, 0)
    rows = [json.loads(line) for line in live.stdout.splitlines()]
    assert {
        int(row["gfn"], 16): (
            int(row["words"][0], 16),
            [int(i, 16) for i in row["hash"]["indices"]],
        )
        for row in rows
    } == _expected(lab)
    again = acquire(str(path), Options()).snapshot.vms[0].hash_rmaps
    assert {slot.gfn: (slot.word, slot.indices.tolist()) for slot in again} == _expected(lab)
    checked = lab.run("check", "--json")
    assert checked.returncode == 0
    assert "hash-MMU guest" in document(checked)["vms"][0]["notes"][0]
    assert "Traceback" not in live.stderr + taken.stderr
    lab.assert_untouched()
