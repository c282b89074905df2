"""A machine that replays a recording (QEMU's -icount with rr=replay).

Places in a recording are instruction counts.  To reach a place, the replay is
taken back to the beginning and run to that count, which executes the same
instructions every time.  QEMU's own way back, GDB's reverse-continue, does the
same for every single stop, and twice.
"""

from __future__ import annotations

import re
import time

from inspector.errors import TargetLost, TargetNotSupported, shown
from inspector.live.control import Control
from inspector.live.machine import LiveMachine
from inspector.live.processes import place_of

__all__ = ["ReplayStuck", "ReplayedMachine"]

REWIND_PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
SLICE = 4.0
"""Seconds after which a replay is stopped to see whether it executes instructions."""
IDLE_SLICES = 2
"""Slices in a row without an instruction after which the replay counts as stuck."""
_COUNT = re.compile(r"instruction count = (\d+)")


class ReplayStuck(TargetLost):
    """The replay runs but executes nothing more; a run from the beginning may get past that."""


class ReplayedMachine:
    """The replay on an attached machine.

    Raises:
        TargetNotSupported: the machine replays nothing, or has run past the
            end of its recording.
    """

    def __init__(self, machine: LiveMachine) -> None:
        if not machine.replays:
            raise TargetNotSupported(
                f"the machine at {place_of(machine.host, machine.port)} does not replay a "
                "recording, so its past cannot be seen; start QEMU with -icount "
                "shift=3,rr=replay,rrfile=FILE,rrsnapshot=init (the lab does: fixtures/lab/lab "
                "record)"
            )
        self._machine = machine
        self.control = Control(machine)
        if "shutdown" in self._status():
            raise TargetNotSupported(
                "the replay has run past the end of its recording, and QEMU cannot take it back "
                "from there; start it again, and stop it earlier (fixtures/lab/lab record does)"
            )

    @property
    def position(self) -> int:
        """The instruction count at which the replay is."""
        text = self._machine.monitor("info replay")
        match = _COUNT.search(text)
        if match is None:
            raise TargetNotSupported(f"QEMU did not answer 'info replay': {shown(text.strip())}")
        return int(match[1])

    def rewind(self) -> None:
        """Take the replay back to the beginning of the recording.

        Raises:
            TargetNotSupported: QEMU cannot do that, or does not come to rest there.
        """
        self._machine.forget()
        problem = shown(self._machine.monitor("replay_seek 0").strip())
        if problem:
            raise TargetNotSupported(
                f"QEMU cannot take the replay back to its beginning: {problem}; "
                "record with rrsnapshot=NAME and a disk for snapshots"
            )
        self.settle()

    def settle(self) -> None:
        """Wait until the replay is stopped after it was taken back.

        QEMU then runs for a moment without telling GDB.

        Raises:
            TargetNotSupported: it does not come to rest.
        """
        for pause in REWIND_PAUSES:
            time.sleep(pause)
            if "paused" in self._status():
                return
        raise TargetNotSupported(
            "the replay does not come to rest at its beginning; QEMU's powernv machines are known "
            "for that, a pseries machine works"
        )

    def stop_at(self, count: int) -> None:
        """Make the replay stop at an instruction count, which must lie ahead."""
        problem = shown(self._machine.monitor(f"replay_break {count}").strip())
        if problem:
            raise TargetNotSupported(f"QEMU cannot stop the replay at {count}: {problem}")

    def run(self, deadline: float) -> bool:
        """Let the replay run until it stops; false if the deadline came first.

        Args:
            deadline: a time of ``time.monotonic()``.

        Raises:
            ReplayStuck: it runs and executes nothing.
        """
        before, idle = self.position, 0
        while (left := deadline - time.monotonic()) > 0:
            if self.control.run(min(left, SLICE)):
                return True
            here = self.position
            idle = idle + 1 if here == before else 0
            if idle == IDLE_SLICES:
                raise ReplayStuck(f"the replay executes nothing more after instruction {here}")
            before = here
        return False

    def run_to(self, count: int, deadline: float) -> bool:
        """Let the replay run to an instruction count; false if the deadline came first.

        Raises:
            ReplayStuck: it runs and executes nothing.
        """
        self.stop_at(count)
        while self.position < count:
            if not self.run(deadline):
                return False
        return True

    def _status(self) -> str:
        return self._machine.monitor("info status")
