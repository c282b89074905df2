"""Machines that have nothing to inspect, and ports that are no machines."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fixtures.lab.stub import Stub
from inspector.live.processes import process_behind
from tests.live.tools import Lab, document, inspector


@pytest.mark.parametrize(
    ("scenario", "code", "text"),
    [
        ("no-kvm", 3, "KVM-HV is not loaded"),
        ("no-vms", 0, "no VMs"),
        ("no-nested", 0, "no nested guests"),
        ("hash", 0, "hash-MMU guest"),
    ],
)
def test_nothing_to_check(boot: Callable[..., Lab], scenario: str, code: int, text: str) -> None:
    lab = boot(scenario)
    done = lab.run("check")
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lab.assert_untouched()


@pytest.mark.parametrize(
    ("scenario", "code", "step", "action"),
    [
        ("no-kvm", 3, "KVM-HV", "modprobe kvm_hv"),
        ("no-vms", 0, "state", "start an L1 guest"),
        ("hash", 0, "VM lpid 1", "disable_radix"),
    ],
)
def test_the_doctor_says_what_is_in_the_way(
    boot: Callable[..., Lab], scenario: str, code: int, step: str, action: str
) -> None:
    lab = boot(scenario)
    done = inspector("doctor", lab.target, "--json")
    assert done.returncode == code, done.stdout
    (told,) = [item for item in document(done)["steps"] if item["next"]]
    assert told["step"] == step
    assert action in told["next"]
    lab.assert_untouched()


def test_the_doctor_without_the_direct_path(boot: Callable[..., Lab]) -> None:
    lab = boot("no-vms")
    done = inspector("doctor", lab.target, "--read-path", "gdb")
    assert done.returncode == 0
    assert "remark  direct path   read through GDB's remote protocol" in done.stdout
    assert "ptrace_scope" in done.stdout
    lab.assert_untouched()


def test_a_stub_that_is_taken_is_told(boot: Callable[..., Lab]) -> None:
    lab = boot("no-vms")
    with Stub(lab.machine.state.gdb_port):
        done = inspector("doctor", lab.target)
    assert done.returncode == 3
    assert "another client is attached" in done.stdout
    lab.assert_untouched()


@pytest.fixture
def small_machine() -> Iterator[int]:
    """The port of a machine that is not a 64-bit POWER machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    arguments = ("-M", "ppce500", "-S", "-nodefaults", "-display", "none")
    machine = subprocess.Popen(
        ["qemu-system-ppc", *arguments, "-gdb", f"tcp:127.0.0.1:{port}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        while process_behind(port) is None:
            assert machine.poll() is None
            time.sleep(0.05)
        yield port
    finally:
        machine.kill()
        machine.wait()


def test_another_machine_is_refused(small_machine: int) -> None:
    done = inspector("doctor", f"gdb:127.0.0.1:{small_machine}")
    assert done.returncode == 3
    assert "failed       architecture" in done.stdout, done.stdout
    assert "next: attach to the qemu-system-ppc64" in done.stdout


def test_the_wrong_kernel_is_refused(boot: Callable[..., Lab]) -> None:
    lab = boot("no-vms")
    modules = lab.machine.state.modules
    wrong = f"{modules}/kernel/arch/powerpc/kvm/kvm.ko.xz"
    done = inspector("check", lab.target, "--kernel", wrong, "--modules", modules)
    assert done.returncode == 3
    assert "is not the kernel that runs in the target" in done.stderr
    lab.assert_untouched()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def rude_port() -> Iterator[int]:
    """A port that closes every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            server.settimeout(0.2)
            while not done.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()


def _refused(port: int) -> str:
    done = inspector("check", f"gdb:127.0.0.1:{port}")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_dead_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "cannot attach" in _refused(port)


def test_silent_port(silent_port: int) -> None:
    assert "gdb" in _refused(silent_port).lower()


def test_rude_port(rude_port: int) -> None:
    assert "cannot attach" in _refused(rude_port)


def test_the_forced_direct_path_is_named(boot: Callable[..., Lab]) -> None:
    lab = boot("no-vms")
    done = lab.run("vms", "--json", "--read-path", "direct")
    assert done.returncode == 0
    assert "QEMU process" in document(done)["target"]["read_path"]
