"""Running a replay, with a script in the machine's place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from inspector.errors import TargetNotSupported
from inspector.live import replayed as module
from inspector.live.machine import LiveMachine
from inspector.live.mi import GdbSilent, Result
from inspector.live.replayed import ReplayedMachine, ReplayStuck


class Gdb:
    """Lets the machine execute as many instructions as its script says, or none for a slice."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.running = False

    def command(self, text: str, timeout: float = 0) -> Result:
        self.machine.log.append(text)
        return Result({}, "")

    def resume(self) -> None:
        self.running = True

    def interrupt(self) -> None:
        if self.running:
            self.running = False
            self.machine.log.append("interrupt")

    def wait_stopped(self, timeout: float) -> None:
        steps, stops = next(self.machine.script)
        self.machine.count += steps
        if not stops:
            raise GdbSilent("nothing")
        self.running = False


class Machine:
    host, port, replays = "here", 1, True

    def __init__(self, script: list[tuple[int, bool]], status: str = "paused") -> None:
        self.script: Iterator[tuple[int, bool]] = iter(script)
        self.status = status
        self.count = 0
        self.log: list[str] = []
        self.gdb = Gdb(self)

    def monitor(self, text: str) -> str:
        self.log.append(text)
        if text == "info replay":
            return f"Replaying execution 'events': instruction count = {self.count}\r\n"
        if text == "info status":
            return f"VM status: {self.status}\r\n"
        if text == "replay_seek 0":
            self.count = 0
        return ""

    def forget(self) -> None:
        pass


def replay_of(machine: Machine) -> ReplayedMachine:
    return ReplayedMachine(cast(Any, machine))


def soon() -> float:
    return time.monotonic() + 60


def test_a_replay_that_gets_on_is_waited_for() -> None:
    machine = Machine([(10, False), (10, False), (5, True)])
    assert replay_of(machine).run(soon())
    assert (machine.count, machine.log.count("interrupt")) == (25, 2)


def test_stops_on_the_way_to_a_count_are_passed_over() -> None:
    machine = Machine([(10, True), (0, False), (30, True), (60, True)])
    assert replay_of(machine).run_to(100, soon())
    assert machine.count == 100
    assert "replay_break 100" in machine.log


def test_a_replay_that_executes_nothing_is_stuck() -> None:
    machine = Machine([(10, False), (0, False), (0, False), (99, True)])
    with pytest.raises(ReplayStuck, match="instruction 10"):
        replay_of(machine).run(soon())


def test_a_deadline_ends_it() -> None:
    machine = Machine([(10, True)])
    assert not replay_of(machine).run(time.monotonic() - 1)
    assert machine.count == 0


def test_taking_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REWIND_PAUSES", (0.0, 0.0))
    machine = Machine([(10, True)])
    replay = replay_of(machine)
    replay.run(soon())
    replay.rewind()
    assert replay.position == 0
    machine.status = "running"
    with pytest.raises(TargetNotSupported, match="does not come to rest"):
        replay.rewind()


def test_a_machine_that_replays_nothing_is_refused() -> None:
    machine = Machine([])
    machine.replays = False
    with pytest.raises(TargetNotSupported, match="lab record"):
        ReplayedMachine(cast(LiveMachine, machine))


def test_a_replay_behind_its_end_is_refused() -> None:
    with pytest.raises(TargetNotSupported, match="past the end"):
        replay_of(Machine([], "paused (shutdown)"))
