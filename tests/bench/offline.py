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

from tests.bench.measure import Row

__all__ = ["dump_rows", "scale_rows"]

SCALE = "fixtures.synthetic.scale"
ENTRIES_PER_GIB = 125_000
GIB = 1 << 30
MIB = 1 << 20


def scale_rows(sizes: tuple[int, ...]) -> Iterator[Row]:
    """Measure synthetic images of L1s with so many GiB; the last is the one to judge by."""
    with tempfile.TemporaryDirectory() as folder:
        lists = _made(Path(folder), 4, 131_072, per_slot=512)
        found = _checked(lists)
        yield Row(
            "131,072 entries in lists of 512, synthetic",
            found["wall"],
            "s",
            "one NumPy pass over the same bytes",
            found["pass"],
            goal=1.5,
        )
        one_list = _checked(_made(Path(folder), 1, 32_768, per_slot=32_768))
        yield Row("one list of 32,768, synthetic", one_list["wall"], "s", goal=1.5)
        times = {}
        for gib in sizes:
            path = _made(Path(folder), gib, gib * ENTRIES_PER_GIB, stale=5)
            found = _checked(path)
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
            parts={"collect, wall": found["collect"], "judge, wall": found["judge"]},
            note=f"{found['bytes'] / 1e6:.0f} MB, {found['verdict']}",
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
            yield Row("growth exponent of CPU time", exponent, "", goal=1.05, parts=parts)


def dump_rows(paths: list[Path]) -> Iterator[Row]:
    """Measure opening and checking dumps of a real machine."""
    for path in paths:
        size = path.stat().st_size / GIB
        found = _checked(path, passes=False)
        yield Row(f"{path.name} ({size:.1f} GiB): open and check", found["wall"], "s", goal=2)
        yield Row(f"{path.name}: peak memory", found["peak"] / MIB, "MiB", goal=300)


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


def _checked(path: Path, passes: bool = True) -> dict[str, Any]:
    options = [] if passes else ["--no-pass"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.scaled", str(path), *options],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found
