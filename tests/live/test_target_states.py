"""Machines that have nothing to inspect, and ports that are no machines."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

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
    """A port that takes connections and never says a word."""
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
