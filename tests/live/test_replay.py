"""A real kernel's calls are recorded, and the model follows them to the same end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.lab.faults.inject import FAULTS, inject
from fixtures.lab.packages import LabError
from tests.live.tools import Lab, document, inspector, need_kernel

CALLS = 10_000


def _replay(lab: Lab, recording: Path, *options: str) -> dict[str, object]:
    done = inspector("replay", str(recording), lab.target, *lab.files, "--json", *options)
    found: dict[str, object] = document(done)
    assert done.returncode == (0 if found["verdict"] == "same" else 1), done.stderr
    return found


def test_ten_thousand_calls(recorded: Callable[..., Lab], tmp_path: Path) -> None:
    recording = tmp_path / "calls.jsonl"
    lab = recorded(recording, scenario="big", count=4600)
    found = _replay(lab, recording)
    assert found["divergence"] is None
    assert found["differences"] == []
    assert found["verdict"] == "same"
    assert found["beyond"] == 0
    calls = found["calls"]
    assert isinstance(calls, int)
    assert calls >= CALLS
    assert found["entries"] == lab.machine.expectation.entries
    lab.assert_untouched()


def test_another_machine_and_kernel(recorded: Callable[..., Lab], tmp_path: Path) -> None:
    kernel = "sid-64k"
    need_kernel(kernel)
    recording = tmp_path / "calls.jsonl"
    lab = recorded(recording, scenario="memslots", machine="pseries", kernel=kernel)
    found = _replay(lab, recording)
    assert found["verdict"] == "same", found
    by_function = found["calls_by_function"]
    assert isinstance(by_function, dict)
    assert by_function["kvmppc_core_free_memslot_hv"] == 1
    assert by_function["kvmhv_remove_nest_rmap_range"] > 0


@pytest.mark.parametrize(
    ("fault", "function", "what"),
    [
        ("insertion-skipped", "kvmppc_create_pte", "the insertion for a new shadow leaf"),
        ("tail-bit-lost", "kvmhv_insert_nest_rmap", "the slot after the call"),
    ],
)
def test_an_injected_fault_is_caught_at_its_first_call(
    recorded: Callable[..., Lab], tmp_path: Path, fault: str, function: str, what: str
) -> None:
    recording = tmp_path / "calls.jsonl"
    lab = recorded(recording, scenario=FAULTS[fault].scenario, hold=True)
    inject(lab.machine, FAULTS[fault])
    with contextlib.suppress(LabError):
        # the kernel may not survive it
        lab.machine.release(30)
    found = _replay(lab, recording)
    divergence = found["divergence"]
    assert isinstance(divergence, dict)
    assert divergence["function"] == function
    assert divergence["what"] == what
    # it is the very first that could show it
    by_function = found["calls_by_function"]
    assert isinstance(by_function, dict)
    assert by_function.get("kvmhv_insert_nest_rmap", 0) == (fault == "tail-bit-lost")
