"""Debian's 6.1, which has neither BTF nor data symbols, with the debug file of kvm-hv alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.lab import dumps, packages
from fixtures.lab.machine import Machine, MachineSpec
from inspector.checks.verdict import Verdict, judge
from inspector.options import Options
from inspector.session import Acquired, acquire
from tests.live.tools import Lab, inspector, need_kernel, slots_of

KERNEL = "6.1-64k"
VARIABLE = "INSPECTOR_TEST_DEBUG_FILE"
CACHE = packages.cache_dir()


@pytest.fixture(scope="module")
def debug_file() -> Path:
    """Return the debug file, if the lab has it or can fetch it."""
    need_kernel(KERNEL)
    if packages.cached_debug_file(KERNEL) is None and os.environ.get(VARIABLE) != "1":
        pytest.skip(
            f"set {VARIABLE}=1 to download the debug package of Linux 6.1 (700 MB) once, "
            "of which the debug file of kvm-hv (3 MB) is kept"
        )
    return packages.debug_file(KERNEL)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forget every kernel, and hide all kernels' files on this host."""
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(CACHE))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("inspector.image.files._kernel_candidates", lambda: iter(()))
    return tmp_path / "cache"


@pytest.fixture(scope="module", params=["mixed", "two-vms"])
def lab(request: pytest.FixtureRequest, debug_file: Path) -> Iterator[Lab]:
    with Machine.start(
        MachineSpec(
            scenario=request.param, kernel=KERNEL, memory="1G", name=f"debug-file-{request.param}"
        )
    ) as machine:
        yield Lab(machine)


def assert_agrees(found: Acquired, lab: Lab) -> None:
    expected = {gfn: list(words) for (_, gfn), words in lab.machine.expectation.slots.items()}
    slots = {gfn: words for vm in found.snapshot.vms for gfn, words in slots_of(vm).items()}
    assert slots == expected
    assert expected
    assert judge(found.snapshot).verdict is Verdict.CONSISTENT


@pytest.mark.parametrize("read_path", ["direct", "gdb"])
def test_both_read_paths(lab: Lab, debug_file: Path, read_path: str) -> None:
    options = Options(read_path=read_path, debug_file=debug_file)
    found = acquire(lab.target, options)
    assert found.origin.layout == f"the target's memory and {debug_file}"
    assert_agrees(found, lab)
    # A module is at another address after each boot; only facts of the build are kept.
    assert not {"vm_list", "kvm", "kvm_hv"} & found.profile.symbols.keys()
    for again in (options, Options(read_path=read_path)):
        kept = acquire(lab.target, again)
        assert kept.origin.layout == "the cache"
        assert_agrees(kept, lab)
    lab.assert_untouched()


def test_it_finds_what_the_files_name(lab: Lab, debug_file: Path) -> None:
    state = lab.machine.state
    found = acquire(lab.target, Options(debug_file=debug_file))
    files = Options(kernel=Path(state.vmlinux), modules=Path(state.modules), debug_file=debug_file)
    named = acquire(lab.target, files)
    assert named.origin.layout == "files"
    theirs = named.profile.symbols
    assert "cur_cpu_spec" not in found.profile.symbols
    for name in ("linux_banner", "modules", "swapper_pg_dir", "vmcoreinfo_data", "vmcoreinfo_size"):
        assert found.profile.symbols[name] == theirs[name]
    assert (found.profile.build_id, found.profile.structs, found.profile.module_build_ids) == (
        named.profile.build_id,
        named.profile.structs,
        named.profile.module_build_ids,
    )
    assert [vm.address for vm in found.snapshot.vms] == [vm.address for vm in named.snapshot.vms]
    assert_agrees(named, lab)


def test_dumps_and_captures(lab: Lab, debug_file: Path, tmp_path: Path) -> None:
    dump, capture = tmp_path / "dump", tmp_path / "capture"
    dumps.dump(lab.machine, dump, "elf")
    assert_agrees(acquire(str(dump), Options(debug_file=debug_file)), lab)
    dump.unlink()
    made = inspector("capture", lab.target, "--debug-file", str(debug_file), "-o", str(capture))
    assert made.returncode == 0, made.stderr
    assert_agrees(acquire(str(capture), Options()), lab)


@pytest.mark.parametrize(
    ("scenario", "code", "text"),
    [("no-vms", 0, "has no VMs"), ("no-kvm", 3, "KVM-HV is not loaded")],
)
def test_no_vm_and_no_kvm(debug_file: Path, scenario: str, code: int, text: str) -> None:
    with Machine.start(
        MachineSpec(scenario=scenario, kernel=KERNEL, name=f"debug-file-{scenario}")
    ) as machine:
        done = inspector("check", machine.target, "--debug-file", str(debug_file))
        assert done.returncode == code, done.stderr
        assert text in done.stdout + done.stderr


def test_without_it_the_message_says_what_to_get(lab: Lab) -> None:
    release = packages.kernel(KERNEL).release
    done = inspector("check", lab.target)
    assert done.returncode == 3
    assert f"linux-image-{release}-dbg" in done.stderr
    assert "kernel/arch/powerpc/kvm/kvm-hv.ko" in done.stderr
    assert "--debug-file" in done.stderr
    lab.assert_untouched()
