"""Dumps and images of any size."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fixtures.lab import dumps
from fixtures.lab.machine import Machine
from tests.bench.measure import Row

__all__ = ["dump_rows", "dumped", "scale_rows"]

SCALE = "fixtures.synthetic.scale"
ENTRIES_PER_GIB = 125_000
MIB = 1 << 20
LEVELS = (1, 31)
"""makedumpfile's dump levels: without zero pages, and with the kernel's own pages only."""


def scale_rows(sizes: tuple[int, ...], repeat: int) -> Iterator[Row]:
    """Measure synthetic images of L1s with these sizes in GiB; the goals are for the last."""
    with tempfile.TemporaryDirectory() as folder:
        lists = _made(Path(folder), 4, 131_072, per_slot=512)
        found = _checked(lists, repeat=repeat)
        yield Row(
            "131,072 entries in lists of 512, synthetic",
            found["wall"],
            "s",
            "one NumPy pass over the same bytes",
            found["pass"],
            goal=1.5,
        )
        path = _made(Path(folder), 1, 32_768, per_slot=32_768)
        one_list = _checked(path, repeat=repeat)
        yield Row("one list of 32,768, synthetic", one_list["wall"], "s", goal=1.5)
        times = {}
        for gib in sizes:
            path = _made(Path(folder), gib, gib * ENTRIES_PER_GIB, stale=5)
            found = _checked(path, repeat=repeat)
            profile = _run(path, "--profile")
            path.unlink()
            times[gib] = found["cpu"]
        name = f"{sizes[-1]} GiB L1, {sizes[-1] * ENTRIES_PER_GIB / 1e6:.1f} M entries, synthetic"
        yield Row(
            f"{name}: CPU time",
            found["cpu"],
            "s",
            "one NumPy pass over the same bytes",
            found["pass"],
            at_most=10,
            goal=15,
            parts={
                "collect": found["cpu collect"],
                "judge": found["cpu judge"],
                "the kernel, for memory that is given for the first time": found["cpu kernel"],
                "wall": found["wall"],
            },
            note=f"{found['bytes'] / 1e6:.0f} MB, {found['verdict']}; seconds by function: "
            + ", ".join(f"{place} {seconds:.2f}" for place, seconds in profile.items()),
            why="every word becomes an entry of several columns, and every leaf is one of a "
            "table, so that three times the bytes are written, which costs more than reading "
            "them (the kernel's part) and some twenty looks into tables for an entry and its "
            "leaf come on top; no step is a search and none is per entry",
        )
        yield Row(
            f"{name}: peak memory",
            found["peak"] / MIB,
            "MiB",
            "the arrays",
            found["arrays"] / MIB,
            at_most=2.5,
            note="the mapped image included",
        )
        if len(sizes) > 1:
            low, high = sizes[0], sizes[-1]
            exponent = math.log(times[high] / times[low]) / math.log(high / low)
            parts = {f"{gib} GiB": seconds for gib, seconds in times.items()}
            yield Row(
                "growth exponent of CPU time",
                exponent,
                "",
                goal=1.05,
                parts=parts,
                why="what is small stays in the processor's cache and in memory that the process "
                "has already, and what is large does not",
            )


def dump_rows(files: dict[str, Path], repeat: int) -> Iterator[Row]:
    """Measure opening and checking dumps of a real machine."""
    for name, path in files.items():
        size = path.stat().st_size / MIB
        found = _checked(path, passes=False, repeat=repeat)
        note = f"{size:.0f} MiB on disk, {found['verdict']}"
        yield Row(f"{name}: open and check", found["wall"], "s", goal=2, note=note)
        yield Row(f"{name}: peak memory", found["peak"] / MIB, "MiB", goal=300)


def dumped(machine: Machine, folder: Path) -> dict[str, Path]:
    """Write dumps of a machine, as a kdump kernel and makedumpfile do; yield their descriptions."""
    memory = f"{machine.state.memory}iB"
    core = folder / "vmcore"
    dumps.vmcore(machine, core)
    found = {f"ELF core of {memory}": core}
    for level in LEVELS:
        path = folder / f"kdump-{level}"
        dumps.makedumpfile(core, path, "-d", str(level), "-c")
        found[f"kdump-compressed dump of {memory}, -d {level}, zlib"] = path
    return found


def _made(folder: Path, gib: int, entries: int, per_slot: int = 1, stale: int = 0) -> Path:
    path = folder / f"{gib}-{entries}-{per_slot}.core"
    module: Any = importlib.import_module(SCALE)
    arguments = ["--gib", str(gib), "--entries", str(entries), "--per-slot", str(per_slot)]
    subprocess.run(
        [sys.executable, "-m", module.__name__, *arguments, "--stale", str(stale), "-o", str(path)],
        check=True,
        capture_output=True,
    )
    return path


def _checked(path: Path, passes: bool = True, repeat: int = 1) -> dict[str, Any]:
    """Return the fastest of several runs; in the others the host did something else."""
    options = [] if passes else ["--no-pass"]
    runs = [_run(path, *options) for _ in range(repeat)]
    return min(runs, key=lambda run: run["cpu"] if passes else run["wall"]) | {
        "pass": min(run.get("pass", math.inf) for run in runs)
    }


def _run(path: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.scaled", str(path), *options],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
