"""A real kernel's calls are recorded, and the model follows them to the same end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
