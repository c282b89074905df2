"""Machines and dumps opened with nothing but their port or name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.lab.machine import Machine, MachineSpec
from inspector.kernel.discover import find_kernel
from inspector.live.machine import LiveMachine
from inspector.options import Options
from inspector.session import Acquired, acquire
from tests.live.tools import Lab, inspector, leaves_of, need_kernel, slots_of

MACHINES = ("powernv9", "pseries")
OTHER_KERNELS = ("6.12-64k", "sid-4k", "sid-64k")
WITHOUT_BTF = "6.1-64k"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forget every kernel, and hide all kernels' files on this host."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("inspector.image.files._kernel_candidates", lambda: iter(()))
    return tmp_path / "cache"


def with_files(lab: Lab, read_path: str = "auto") -> Acquired:
    state = lab.machine.state
    return acquire(
        lab.target,
        Options(kernel=Path(state.vmlinux), modules=Path(state.modules), read_path=read_path),
    )


def assert_same(one: Acquired, other: Acquired) -> None:
    assert len(one.snapshot.vms) == len(other.snapshot.vms) > 0
    for here, there in zip(one.snapshot.vms, other.snapshot.vms, strict=True):
        assert slots_of(here) == slots_of(there)
        assert leaves_of(here) == leaves_of(there)
    mine, theirs = one.profile.to_json(), other.profile.to_json()
    for profile in (mine, theirs):
        profile["symbols"].pop("vm_list", None)
    assert mine == theirs


@pytest.fixture(params=OTHER_KERNELS)
def other_kernel(request: pytest.FixtureRequest) -> Iterator[Lab]:
    yield from booted(request.param)


@pytest.fixture
def kernel_without_btf() -> Iterator[Lab]:
    yield from booted(WITHOUT_BTF)


def booted(kernel: str) -> Iterator[Lab]:
    need_kernel(kernel)
    with Machine.start(MachineSpec(scenario="mixed", kernel=kernel)) as machine:
        yield Lab(machine)


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
@pytest.mark.parametrize("machine", MACHINES)
def test_the_same_answers_as_with_files(
    boot: Callable[..., Lab], machine: str, read_path: str, empty_cache: Path
) -> None:
    lab = boot("mixed", machine)
    found = acquire(lab.target, Options(read_path=read_path))
    assert found.origin.layout == "the target's memory"
    again = acquire(lab.target, Options(read_path=read_path))
    assert again.origin.layout == "the cache"
    files = with_files(lab, read_path)
    assert files.origin.layout == "files"
    assert_same(found, files)
    assert_same(again, files)
    lab.assert_untouched()


def test_other_kernels(other_kernel: Lab) -> None:
    found = acquire(other_kernel.target, Options())
    assert found.origin.layout == "the target's memory"
    assert_same(found, with_files(other_kernel))


def test_a_kernel_that_does_not_say_enough(kernel_without_btf: Lab) -> None:
    machine = kernel_without_btf.machine
    with LiveMachine("127.0.0.1", machine.gdb_port) as live:
        found = find_kernel(live.memory, pause=live.for_reading)
    assert found.profile is None
    assert found.release in machine.state.modules
    assert "CONFIG_KALLSYMS_ALL" in found.missing


def test_a_layout_is_enough(boot: Callable[..., Lab], tmp_path: Path, empty_cache: Path) -> None:
    lab = boot("mixed")
    path = tmp_path / "layout.json"
    done = inspector("layout", lab.target, "-o", str(path), "--json")
    assert done.returncode == 0, done.stderr
    saved = json.loads(path.read_bytes())
    assert json.loads(done.stdout)["build_id"] == saved["build_id"]
    assert (path.stat().st_mode & 0o777) == 0o600
    checked = inspector("check", lab.target, "--layout", str(path), "--json")
    document = json.loads(checked.stdout)
    assert (checked.returncode, document["target"]["layout"]) == (0, f"the layout {path}")
    path.write_text(json.dumps(saved | {"build_id": "0" * 40}))
    refused = inspector("check", lab.target, "--layout", str(path))
    assert refused.returncode == 3
    assert "does not fit the target" in refused.stderr
    both = inspector("check", lab.target, "--layout", str(path), *lab.files)
    assert both.returncode == 2
    lab.assert_untouched()


def test_kvm_is_not_loaded(boot: Callable[..., Lab]) -> None:
    lab = boot("no-kvm")
    done = inspector("check", lab.target)
    assert done.returncode == 3
    assert "KVM-HV is not loaded" in done.stderr
    lab.assert_untouched()


def test_qemus_own_dump(boot: Callable[..., Lab], tmp_path: Path) -> None:
    lab = boot("mixed")
    path = tmp_path / "qemu.core"
    qmp = lab.machine.qmp
    qmp.execute("dump-guest-memory", paging=False, protocol=f"file:{path}", detach=True)
    while qmp.execute("query-dump")["status"] == "active":
        time.sleep(0.1)
    found = acquire(str(path), Options())
    assert found.origin.layout == "the target's memory"
    assert_same(found, with_files(lab))
    path.unlink()
