"""The shipped captures, opened once for all tests."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from inspector.capture import read_capture
from inspector.dumps.elfcore import open_core
from inspector.image.profile import Profile
from inspector.memory.segments import SegmentedMemory
from inspector.options import Options
from inspector.session import Acquired, acquire
from tests.profiles import thorough

__all__ = ["CAPTURES", "DIRECTORY", "SMALL", "SPREAD", "description", "opened", "pieces"]

DIRECTORY = Path(__file__).resolve().parent.parent / "fixtures" / "captures"
CAPTURES = sorted(DIRECTORY.glob("*.core.zst"))
SPREAD = [
    path
    for path in CAPTURES
    if thorough()
    or path.name.partition(".")[0]
    in {
        "powernv9-hash",
        "powernv9-hugetlb-6.12-64k",
        "powernv9-l1-sizes",
        "powernv9-linux",
        "powernv9-mixed",
        "powernv9-mixed-6.1-64k",
        "powernv9-mixed-sid-64k",
        "powernv9-no-vms",
        "powernv9-stale-5.10-64k",
        "powernv9-two-vms",
        "pseries-mixed",
    }
]
"""Captures for slow tests: one of each machine, kernel, page size and kind of guest."""

SMALL = DIRECTORY / "powernv9-mixed.core.zst"


@functools.cache
def opened(path: Path) -> Acquired:
    """Return a capture as the commands see it."""
    return acquire(str(path), Options())


def pieces(path: Path) -> tuple[SegmentedMemory, Profile]:
    """Return the memory and the profile of a capture."""
    core = open_core(path)
    capture = read_capture(core)
    assert capture is not None
    return capture.memory, capture.profile


def description(path: Path) -> dict[str, Any]:
    """Return the JSON document that describes a capture."""
    text = path.with_name(path.name.replace(".core.zst", ".json")).read_text()
    found: dict[str, Any] = json.loads(text)
    return found
