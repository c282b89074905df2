"""drgn with the kernel's debug files finds the same in a vmcore as the inspector without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fixtures.lab import dumps, packages
from fixtures.lab.machine import Machine, MachineSpec
from fixtures.lab.opinions import byinspector
from fixtures.lab.opinions.compare import compare, items
from inspector.options import Options
from inspector.session import acquire

VARIABLE = "INSPECTOR_TEST_DRGN"
DEBUG_FILES = ("vmlinux", "kvm", "kvm-hv")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get(VARIABLE) != "1",
        reason=f"set {VARIABLE}=1 to compare with drgn, which has to be installed; "
        "downloads the kernel's debug package (900 MB) once",
    ),
    pytest.mark.usefixtures("boot"),
]


@pytest.mark.parametrize("scenario", ["mixed", "random", "memslots", "two-vms", "thp"])
def test_same_as_drgn(scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fixtures.lab.opinions import bydrgn

    core = tmp_path / "vmcore"
    with Machine.start(
        MachineSpec(scenario=scenario, memory="1G", name=f"drgn-{scenario}")
    ) as machine:
        dumps.dump(machine, core, "vmcore")
        files = packages.debug_files(machine.state.kernel, DEBUG_FILES)
        expected = machine.expectation.entries
    # Making the dump left a description of the kernel; the inspector is to make its own.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        theirs = items(bydrgn.walk(bydrgn.open_core(core, files.values())))
        ours = items(byinspector.state(acquire(str(core), Options()).snapshot))
    finally:
        core.unlink()
    found = compare(ours, theirs)
    assert found.differences == []
    assert found.counts["rmap word"] == expected > 0
    assert found.counts["shadow leaf"] > 0
