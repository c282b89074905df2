"""The criteria by which long runs are judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from fixtures.lab import endure
from fixtures.lab.machine import Machine
from fixtures.lab.usage import Usage, usage

MINUTES = 60


def _seen(kib: list[int], files: int = 15) -> list[tuple[float, Usage]]:
    return [(60.0 * i, Usage(one, files, 5, 0.1 * i, 2)) for i, one in enumerate(kib)]


def _run(seen: list[tuple[float, Usage]], output: Path = Path()) -> endure.Run:
    nothing = cast(Any, None)
    machine = cast(Machine, None)
    return endure.Run("it", machine, ("watch",), nothing, output, 1.0, seen=seen)


def _failures(run: endure.Run) -> list[str]:
    failures: list[str] = []
    endure._resources(run, failures)
    return failures


def test_memory_that_goes_up_and_down_is_no_growth() -> None:
    assert _failures(_run(_seen([92_000 + 2_000 * (i % 3) for i in range(MINUTES)]))) == []


def test_what_is_taken_at_the_start_does_not_count() -> None:
    assert _failures(_run(_seen([40_000 + 10_000 * min(i, 5) for i in range(MINUTES)]))) == []


def test_memory_that_grows_is_a_failure() -> None:
    (failure,) = _failures(_run(_seen([90_000 + 50 * i for i in range(MINUTES)])))
    assert failure.startswith("memory grew by 3.0%")


def test_a_file_left_open_is_a_failure() -> None:
    seen = _seen([90_000] * 30) + [
        (1800 + at, taken) for at, taken in _seen([90_000] * 30, files=16)
    ]
    assert _failures(_run(seen)) == ["open files went from 15 to 16"]


def _watched(tmp_path: Path, starts: list[float], changed: int = 1, took: float = 0.1) -> list[str]:
    output = tmp_path / "samples"
    vms = [{"unread": 0, "inserted": changed, "removed": 0}]
    rest = {"stopped_ms": 1.0, "notes": [], "vms": vms}
    samples = [{"seconds": at, "took_ms": took * 1000, **rest} for at in starts]
    output.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    failures: list[str] = []
    endure._of_watch(_run([], output), failures, 600.0)
    return failures


def test_looks_that_keep_their_seconds(tmp_path: Path) -> None:
    assert _watched(tmp_path, [i + 0.1 * (i % 4) for i in range(598)]) == []


def test_looks_that_creep_away(tmp_path: Path) -> None:
    failures = _watched(tmp_path, [i * 1.0017 for i in range(598)])
    assert any("crept away by 0.6" in failure for failure in failures)


def test_looks_that_take_long_are_missed_and_no_creeping(tmp_path: Path) -> None:
    assert _watched(tmp_path, [3.0 * i for i in range(200)], took=3.0) == []


def test_looks_that_are_late_without_a_reason(tmp_path: Path) -> None:
    starts = [3.0 * i for i in range(200)]
    assert "199 looks began late after one that did not take long" in _watched(tmp_path, starts)


def test_a_guest_that_does_nothing_any_more(tmp_path: Path) -> None:
    assert _watched(tmp_path, list(map(float, range(598))), changed=0) == [
        "nothing changed any more at the last look"
    ]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_children_count_too() -> None:
    alone = usage(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        both = usage(os.getpid())
        assert child.stdin is not None
        child.stdin.close()
    assert alone is not None
    assert both is not None
    assert both.processes == alone.processes + 1
    assert usage(child.pid) is None
