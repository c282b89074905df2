"""Helpers of the live tests: lab machines, and running the inspector on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from fixtures.lab import packages
from fixtures.lab.expectation import Expectation
from fixtures.lab.machine import Machine
from fixtures.lab.stub import Stub
from inspector.kvm.snapshot import Snapshot, Vm
from tests.schemas.closed import hold


@dataclass(frozen=True)
class Lab:
    """A booted lab machine and the inspector's arguments for it."""

    machine: Machine

    @property
    def target(self) -> str:
        """The TARGET argument."""
        return self.machine.target

    @property
    def files(self) -> list[str]:
        """The options that give the kernel's files."""
        state = self.machine.state
        return ["--kernel", state.vmlinux, "--modules", state.modules]

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the inspector on the machine as a user would."""
        return inspector(command, self.target, *self.files, *options)

    def status(self) -> str:
        """Return QEMU's own answer on whether the machine runs."""
        return str(self.machine.qmp.execute("query-status")["status"])

    def assert_untouched(self) -> None:
        """Assert that the machine runs, and that its stub is in virtual mode."""
        assert self.status() == "running"
        assert physical_mode(self.machine.state.gdb_port) == "0"
        assert self.status() == "running"


def absent(what: str, remedy: str) -> NoReturn:
    """Skip the test because something is missing, except in CI, where that is a failure."""
    text = f"{what}; run {remedy}"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def need_kernel(key: str) -> None:
    """Skip the test, or fail in CI, if a kernel of the lab is missing."""
    if packages.cached_kernel(key) is None:
        absent(f"kernel {key} is not downloaded", f"fixtures/lab/lab install --kernel {key}")


def inspector(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the inspector."""
    return subprocess.run(
        [sys.executable, "-m", "inspector", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """Return the JSON that a command printed, after a check against the published schema."""
    assert "Traceback" not in done.stderr
    return as_published(json.loads(done.stdout))


def as_published(found: Any) -> Any:
    """Check a document against the published schema that it names; return it."""
    hold(found["schema"].removeprefix("inspector.").replace("/", "."), found)
    return found


def physical_mode(port: int) -> str:
    """Return the stub's physical-mode flag."""
    stub = Stub(port)
    try:
        return stub.packet("qqemu.PhyMemMode")
    finally:
        stub.close()


def slots_of(vm: Vm) -> dict[int, list[int]]:
    """Return the rmap slots of a VM as the exerciser states them."""
    return {slot.gfn: [int(word) for word in slot.words] for slot in vm.rmaps}


def assert_words_agree(snapshot: Snapshot, expected: Expectation) -> None:
    """Compare the rmap slots of every VM with those that the exerciser states."""
    assert len(snapshot.vms) == len(expected.vms)
    for known in expected.vms:
        slot = next(slot for slot in expected.memslots if slot.vm == known.index)
        words = {gfn: w for (index, gfn), w in expected.slots.items() if index == known.index}
        assert slots_of(vm_at(snapshot, slot.hva)) == words


def leaves_of(vm: Vm) -> set[tuple[int, int, int]]:
    """Return the shadow leaves of a VM as (LPID, L2 address, log2 of the page size)."""
    return {
        (nested.lpid, address, shift)
        for nested in vm.nested
        for address, shift in zip(
            nested.shadow.address.tolist(), nested.shadow.shift.tolist(), strict=True
        )
    }


def vm_at(snapshot: Snapshot, hva: int) -> Vm:
    """Return the VM that has a memslot at a user address."""
    return next(
        vm for vm in snapshot.vms if any(slot.userspace_addr == hva for slot in vm.memslots)
    )
