"""What QEMU says of a machine's state when a client attaches to it."""

from __future__ import annotations

import pytest

from inspector.live.terms import ran

OTHER_STATES = (
    "debug",
    "inmigrate",
    "internal-error",
    "io-error",
    "postmigrate",
    "prelaunch",
    "finish-migrate",
    "restore-vm",
    "save-vm",
    "shutdown",
    "suspended",
    "watchdog",
    "guest-panicked",
    "colo",
)
"""``RunState`` of QEMU's qapi/run-state.json, without running and paused."""


@pytest.mark.parametrize("status", ["VM status: paused", "VM status: paused (single step mode)"])
def test_a_machine_that_attaching_has_stopped(status: str) -> None:
    assert ran(status)
    assert ran(status + "\r\n")


@pytest.mark.parametrize("state", OTHER_STATES)
@pytest.mark.parametrize("mode", ["", " (single step mode)"])
def test_a_machine_that_was_stopped_before(state: str, mode: str) -> None:
    assert not ran(f"VM status: paused{mode} ({state})")


@pytest.mark.parametrize("status", ["", "VM status: running", "VM status: paused (", "unknown"])
def test_what_is_not_known_is_not_let_run(status: str) -> None:
    assert not ran(status)
