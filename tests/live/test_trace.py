"""A live machine is followed through breakpoints, and is left as it was found."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from fixtures.lab.faults.inject import FAULTS, inject
from fixtures.lab.machine import Machine, MachineSpec
from fixtures.lab.packages import LabError
from tests.live.tools import Lab, document, inspector

CALLS = 50


def following(lab: Lab) -> subprocess.Popen[str]:
    """Start a trace that does not end by itself, and wait until it has stopped the machine."""
    lab.machine.qmp.events()
    command = [sys.executable, "-m", "inspector", "trace", lab.target, "--calls", "1000000"]
    process = subprocess.Popen(
        [*command, "--seconds", "1000", *lab.files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stops = 0
    deadline = time.monotonic() + 60
    while stops < 20 and time.monotonic() < deadline:
        stops += sum(event.name == "STOP" for event in lab.machine.qmp.events(0.2))
    assert stops >= 20
    return process


def let_go(machine: Machine) -> None:
    """Let a machine run that may not survive that."""
    with contextlib.suppress(LabError):
        machine.release(20)


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
def test_a_machine_that_is_busy(boot: Callable[..., Lab], read_path: str) -> None:
    lab = boot("mixed", idle="churn")
    calls = CALLS if read_path == "direct" else 10
    options = ("--calls", str(calls), "--seconds", "100", "--read-path", read_path)
    done = lab.run("trace", *options, "--json")
    found = document(done)
    assert done.returncode == 0
    assert found["schema"] == "inspector.trace/1"
    assert found["divergence"] is None
    assert found["ended"] == "calls"
    assert found["returns"] == calls
    assert found["calls_by_function"]["kvmhv_insert_nest_rmap"] > 0
    assert found["stops"] >= 2 * calls
    lab.assert_untouched()
    assert lab.run("check").returncode == 0


def test_a_machine_that_is_idle(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed", "pseries")
    done = lab.run("trace", "--seconds", "1")
    assert done.returncode == 0
    assert "nothing was seen" in done.stdout
    lab.assert_untouched()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_machine_running(
    boot: Callable[..., Lab], number: signal.Signals, code: int
) -> None:
    lab = boot("mixed", idle="churn")
    process = following(lab)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert ("verdict: same" in output) == (number == signal.SIGINT)
    lab.assert_untouched()


def test_a_machine_that_ends(boot: Callable[..., Lab]) -> None:
    with Machine.start(MachineSpec(scenario="mixed", idle="churn", name="ends")) as machine:
        process = following(Lab(machine))
        os.kill(machine.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "Traceback" not in errors
    assert errors.startswith("inspector: ")


def test_a_dump_cannot_be_followed() -> None:
    done = inspector("trace", "fixtures/captures/powernv9-mixed.core.zst")
    assert done.returncode == 3
    assert "gdb:HOST:PORT" in done.stderr


def test_a_fault_is_caught_at_its_first_call(boot: Callable[..., Lab]) -> None:
    with Machine.start(MachineSpec(scenario="singles", hold=True, name="followed")) as machine:
        lab = Lab(machine)
        inject(machine, FAULTS["tail-bit-lost"])
        release = threading.Timer(5, let_go, [machine])
        release.start()
        try:
            done = lab.run("trace", "--seconds", "60", "--json")
        finally:
            release.join()
        found = document(done)
        assert done.returncode == 1
        divergence = found["divergence"]
        assert divergence["function"] == "kvmhv_insert_nest_rmap"
        assert divergence["what"] == "the slot after the call"
        assert found["calls_by_function"]["kvmhv_insert_nest_rmap"] == 1
        expected, actual = divergence["expected"], divergence["found"]
        assert (int(expected[0], 16) ^ int(actual[0], 16)) == 1
        lab.assert_untouched()
