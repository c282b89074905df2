"""Machines of the lab, booted once for the tests that share them.

If the lab is not installed, these tests are skipped, except in CI, where a
missing lab is a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.lab import packages
from fixtures.lab.machine import Machine, MachineSpec
from tests.live.tools import Lab, absent, need_kernel

PROGRAMS = ("qemu-system-ppc64", "gdb-multiarch", "powerpc64le-linux-gnu-gcc", "dtc")


@pytest.fixture(scope="session", autouse=True)
def _lab_installed() -> None:
    programs = [program for program in PROGRAMS if shutil.which(program) is None]
    if programs:
        absent(f"the lab is not installed ({', '.join(programs)})", "fixtures/lab/lab install")
    need_kernel(packages.DEFAULT_KERNEL)
    # Tests have a cache of their own; the lab's stays where it is.
    os.environ[packages.CACHE_VARIABLE] = str(packages.cache_dir())


@pytest.fixture(scope="module")
def _own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the machines of tests apart from those of the user."""
    before = os.environ.get("INSPECTOR_LAB_STATE")
    link = _short(tmp_path_factory.mktemp("lab"))
    os.environ["INSPECTOR_LAB_STATE"] = str(link)
    yield
    link.unlink(missing_ok=True)
    if before is None:
        del os.environ["INSPECTOR_LAB_STATE"]
    else:
        os.environ["INSPECTOR_LAB_STATE"] = before


@pytest.fixture(scope="module")
def boot(_own_state: None) -> Iterator[Callable[..., Lab]]:
    """Return a function that boots a machine, or returns the one that was booted before."""
    machines: dict[str, Lab] = {}
    with contextlib.ExitStack() as stack:

        def start(scenario: str = "mixed", machine: str = "powernv9", idle: str = "host") -> Lab:
            name = f"{machine}-{scenario}-{idle}"
            if name not in machines:
                started = Machine.start(
                    MachineSpec(
                        scenario=scenario, machine=machine, idle=idle, name=name, radix=True
                    )
                )
                machines[name] = Lab(stack.enter_context(started))
            return machines[name]

        yield start


@pytest.fixture
def recorded(_own_state: None) -> Iterator[Callable[..., Lab]]:
    """Return a function that boots a machine whose calls are recorded into a file."""
    with contextlib.ExitStack() as stack:

        def start(recording: Path, **options: Any) -> Lab:
            machine = Machine.start(MachineSpec(record=recording, **options))
            return Lab(stack.enter_context(machine))

        yield start


def _short(path: Path) -> Path:
    """Return a path short enough for the name of a socket in it."""
    link = Path(f"/tmp/inspector-{os.getpid()}")
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return link
