"""The machine is left as it was found, whatever context it was stopped in."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.lab.stub import Stub
from inspector.checks.verdict import Verdict, judge
from inspector.image.elf import ElfFile
from inspector.options import Options
from inspector.session import acquire
from tests.live.tools import Lab, document, inspector, leaves_of, slots_of, vm_at
from tests.profiles import examples

pytestmark = pytest.mark.slow

MSR_HV = 1 << 60
MSR_NUMBER = 65
"""The MSR among GDB's registers of a POWER machine (QEMU's power64-core.xml)."""
INTERRUPTIONS = 12
RELAY_DONE = 20.0
CHURN_STOPS = examples(12)
GUEST_STOPS = 60


def _msr(stub: Stub) -> int:
    return int.from_bytes(bytes.fromhex(stub.packet(f"p{MSR_NUMBER:x}")), "little")


@pytest.mark.parametrize("idle", ["l1", "l2"])
def test_stopped_in_a_guest(boot: Callable[..., Lab], idle: str) -> None:
    """While the vCPU runs a guest, a virtual read is wrong and the inspector is right."""
    lab = boot("singles", idle=idle)
    state = lab.machine.state
    image = ElfFile(Path(state.vmlinux))
    (banner,) = image.symbols.values("linux_banner")
    truth = image.at(banner, 16)
    assert truth is not None
    wrong = 0
    for _ in range(GUEST_STOPS):
        stub = Stub(state.gdb_port)
        try:
            if not _msr(stub) & MSR_HV:
                answer = stub.packet(f"m{banner:x},10")
                wrong += answer != truth.hex()
        finally:
            stub.close()
        if wrong >= 3:
            break
        time.sleep(0.01)
    assert wrong >= 3, "the vCPU was never stopped in a guest"

    expected = lab.machine.expectation
    for read_path in ("direct", "gdb"):
        options = Options(
            kernel=Path(state.vmlinux), modules=Path(state.modules), read_path=read_path
        )
        for _ in range(3):
            vm = vm_at(acquire(lab.target, options).snapshot, expected.memslots[0].hva)
            assert slots_of(vm) == {gfn: words for (_, gfn), words in expected.slots.items()}
            assert leaves_of(vm) >= {(o.lpid, o.l2, o.shift) for o in expected.leaves}
    lab.assert_untouched()


def test_no_false_alarm_while_entries_come_and_go(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed", idle="churn")
    state = lab.machine.state
    options = Options(kernel=Path(state.vmlinux), modules=Path(state.modules))
    verdicts = []
    entries = set()
    for _ in range(CHURN_STOPS):
        judgement = judge(acquire(lab.target, options).snapshot)
        verdicts.append(judgement.verdict)
        entries.add(sum(vm.counts.entries for vm in judgement.vms))
        assert judgement.verdict is not Verdict.VIOLATIONS, judgement.findings[:3]
    assert verdicts.count(Verdict.CONSISTENT) > CHURN_STOPS // 2
    assert len(entries) > 1, "nothing changed, so nothing was shown"
    lab.assert_untouched()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("read_path", ["gdb", "direct"])
def test_interrupted_at_a_random_moment(
    boot: Callable[..., Lab], read_path: str, number: signal.Signals
) -> None:
    lab = boot("mixed")
    chance = random.Random(f"{read_path}-{number}")
    command = [sys.executable, "-m", "inspector", "check", lab.target, *lab.files]
    command += ["--read-path", read_path]
    codes = set()
    for _ in range(INTERRUPTIONS):
        running = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(chance.uniform(0.4, 1.6))
        running.send_signal(number)
        _, errors = running.communicate(timeout=30)
        codes.add(running.returncode)
        assert "Traceback" not in errors
        lab.assert_untouched()
    assert codes & {130, 143}, "no run was interrupted"


def test_no_history_of_a_machine_that_was_not_recorded(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")
    done = lab.run("history", "--gfn", "0x20")
    assert done.returncode == 3
    assert "lab record" in done.stderr
    lab.assert_untouched()


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
def test_a_machine_that_was_stopped_stays_so(boot: Callable[..., Lab], read_path: str) -> None:
    lab = boot("no-nested")
    lab.machine.qmp.execute("stop")
    try:
        done = lab.run("check", "--read-path", read_path)
        assert done.returncode == 0, done.stderr
        assert "was left so" in done.stdout
        assert lab.status() == "paused"
    finally:
        done = inspector("resume", lab.target, "--json")
    assert document(done)["found"] == "VM status: paused"
    lab.assert_untouched()


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
def test_killed_at_a_random_moment(boot: Callable[..., Lab], read_path: str) -> None:
    """Whether the tool, its GDB or both are killed, the machine runs."""
    lab = boot("mixed")
    chance = random.Random(read_path)
    command = [sys.executable, "-m", "inspector", "check", lab.target, *lab.files]
    for round_ in range(9):
        running = subprocess.Popen(
            [*command, "--read-path", read_path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(chance.uniform(0.4, 1.6))
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        gdbs = [int(pid) for pid in children if b"gdb" in Path(f"/proc/{pid}/comm").read_bytes()]
        victims = [running.pid, *gdbs] if round_ % 3 == 2 else gdbs if round_ % 3 else [running.pid]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, errors = running.communicate(timeout=30)
        assert "Traceback" not in errors
        # the relay outlives them, and ends a moment later
        deadline = time.monotonic() + RELAY_DONE
        while lab.status() != "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        lab.assert_untouched()
