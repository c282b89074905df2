"""Whether a machine runs, observed from its QEMU process without touching the machine.

QEMU stops the machine when a client connects, and does not say whether it was
stopped before.  The threads of its vCPUs show it: the thread of a halted vCPU
still wakes up for the kernel's timers, at the latest after the four seconds of
the watchdog (kernel/watchdog.c); the threads of a stopped machine never do.
"""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["Activity"]

PATIENCE = 5.0
"""Seconds in which a vCPU of a running machine runs at least once."""
PAUSE = 0.005
"""Seconds between two looks."""
SHARE = 10
"""A thread counts as a vCPU's if it ran for at least 1/SHARE of the busiest thread's time."""
STARTED = 10_000_000
"""Nanoseconds that the busiest thread must have run before vCPUs can be told from others."""


class Activity:
    """The activity of the vCPUs of a QEMU process from now on.

    Args:
        pid: a process on this host, QEMU or not.
    """

    def __init__(self, pid: int) -> None:
        threads = {task: _ran(task) for task in _tasks(pid)}
        busiest = max(threads.values(), default=0)
        self._vcpus = {
            task: ran
            for task, ran in threads.items()
            if busiest >= STARTED and ran * SHARE >= busiest
        }

    def is_stopped(self, patience: float = PATIENCE) -> bool:
        """Wait until a vCPU has run; true if none does in time, false also if it cannot be told."""
        deadline = time.monotonic() + patience
        while self._vcpus:
            if any(_ran(task) != ran or _wants(task) for task, ran in self._vcpus.items()):
                return False
            if time.monotonic() >= deadline:
                return True
            time.sleep(PAUSE)
        return False


def _tasks(pid: int) -> list[Path]:
    """Return the threads of a QEMU process other than its main one, none for other processes."""
    folder = Path("/proc") / str(pid)
    try:
        program = (folder / "cmdline").read_bytes().split(b"\0", 1)[0]
        if b"qemu" not in program.rpartition(b"/")[2]:
            return []
        return [task for task in (folder / "task").iterdir() if task.name != str(pid)]
    except OSError:
        return []


def _ran(task: Path) -> int:
    """Return for how many nanoseconds a thread has run (proc(5), schedstat)."""
    try:
        return int((task / "schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _wants(task: Path) -> bool:
    """Say whether a thread would run if the host had a CPU for it."""
    try:
        return (task / "stat").read_text().rpartition(") ")[2].startswith("R")
    except OSError:
        return False
