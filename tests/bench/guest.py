"""The cost of watching for the guest: the work that it does in a time, with and without.

A worker in L0 prints a line for each piece of work.  Periods with and without
``inspector watch`` alternate on the same machine.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fixtures.lab import linuxstack
from fixtures.lab.machine import Machine
from tests.bench.measure import Row

__all__ = ["linux_rows", "rows"]

RATE = 10
SECONDS = 5.0
PAIRS = 5
LINE = b"LAB WORK"
SETTLE = 0.5

BUSY = f"""
import sys, time
while True:
    begun = time.perf_counter()
    while time.perf_counter() - begun < float(sys.argv[1]):
        pass
    time.sleep({1 / RATE} - float(sys.argv[1]))
"""

LOOP = "i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; echo LAB WORK"
BEGIN = f"(while :; do {LOOP}; done) >/dev/console 2>&1 & echo $! >/run/work.pid"
END = "kill $(cat /run/work.pid)"


def linux_rows(machine: Machine) -> Iterator[Row]:
    """Measure on a Linux stack, in whose L0 a worker runs."""
    linuxstack.command(machine, BEGIN)
    try:
        yield from rows(machine, "Linux in L0, L1 and L2")
    finally:
        linuxstack.command(machine, END)


@dataclass
class _Seen:
    """Times that ``inspector watch`` reported of its samples, in ms, and the period in seconds."""

    seconds: float = 0.0
    stopped: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """The share of one processor that the tool and its GDB took."""


def rows(machine: Machine, name: str) -> Iterator[Row]:
    """Measure on a machine in whose L0 a worker runs."""
    lost, burnt, seen = [], [], _Seen()
    for _ in range(PAIRS):
        without = _work(machine)
        lost.append(100 * (1 - _watched(machine, seen) / without))
        burnt.append(100 * (1 - _beside(machine, seen.shares[-1]) / without))
    stopped = sum(seen.stopped) / 1000
    yield Row(
        f"work the guest loses to watching {RATE} times a second, {name}",
        statistics.median(lost),
        "%",
        goal=5,
        parts={
            "the machine stood still": 100 * stopped / seen.seconds,
            "lost to a process that takes as much processor time and touches nothing": (
                statistics.median(burnt)
            ),
        },
        note=f"the median of {PAIRS} pairs of {SECONDS:g} s, {min(lost):.1f} to {max(lost):.1f} %; "
        f"{len(seen.stopped) / seen.seconds:.1f} samples a second, each with a stop of "
        f"{statistics.median(seen.stopped):.1f} ms and taken in "
        f"{statistics.median(seen.took):.0f} ms; watching takes "
        f"{100 * statistics.median(seen.shares):.0f} % of a processor, its start included",
        why="the processors of the host share what they have: what a process beside QEMU takes, "
        "the guest loses",
    )


def _work(machine: Machine) -> float:
    """Return how many pieces of work the worker does in a second."""
    time.sleep(SETTLE)
    began, before = time.perf_counter(), _lines(machine)
    time.sleep(SECONDS)
    done = _lines(machine) - before
    return done / (time.perf_counter() - began)


def _lines(machine: Machine) -> int:
    return machine.console_path.read_bytes().count(LINE)


def _beside(machine: Machine, share: float) -> float:
    """Return the same number while another process is busy for a share of the time."""
    with subprocess.Popen([sys.executable, "-c", BUSY, str(min(share, 1.0) / RATE)]) as busy:
        try:
            return _work(machine)
        finally:
            busy.kill()


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watched(machine: Machine, seen: _Seen) -> float:
    """Return the same number while the machine is watched."""
    command = [sys.executable, "-m", "inspector", "watch", machine.target, "--jsonl"]
    command += ["--rate", str(RATE), "--seconds", str(SECONDS + 3 * SETTLE)]
    before = _processor_time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        done = _work(machine)
        samples = [json.loads(line) for line in (first, *watching.stdout)][1:]
    if not samples:
        raise RuntimeError(f"inspector watch ended with {watching.returncode}")
    seen.seconds += samples[-1]["seconds"]
    seen.shares.append((_processor_time() - before) / samples[-1]["seconds"])
    seen.stopped += [sample["stopped_ms"] for sample in samples]
    seen.took += [sample["took_ms"] for sample in samples]
    return done
