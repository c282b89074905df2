"""A confined process cannot do what the confinement forbids."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inspector.live.confine import (
    Limits,
    landlock_version,
    launcher,
)
from inspector.live.gdb import protections

LIMITS = Limits(memory=512, processor=2)
landlock = pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")


def confined(code: str, limits: Limits = LIMITS) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a confined process."""
    command = launcher(limits, [sys.executable, "-I", "-S", "-c", code])
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_it_reads_runs_programs_and_speaks_over_what_it_has() -> None:
    done = confined(
        "import subprocess; print(open('/proc/self/status').read(4)); "
        "subprocess.run(['/bin/sh', '-c', 'echo said; echo dropped > /dev/null'], check=True)"
    )
    assert done.returncode == 0, done.stderr
    assert "said" in done.stdout


@pytest.mark.slow
@landlock
@pytest.mark.parametrize(
    "code",
    [
        "open({new!r}, 'w')",
        "open({old!r}, 'w')",
        "open({old!r}, 'r+')",
        "open({old!r}, 'a')",
        "os.unlink({old!r})",
        "os.rename({old!r}, {new!r})",
        "os.mkdir({new!r})",
        "os.symlink('x', {new!r})",
        "os.mkfifo({new!r})",
    ],
)
def test_no_file_is_written_made_or_removed(code: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("kept")
    done = confined("import os; " + code.format(old=str(old), new=str(new)))
    assert "PermissionError" in done.stderr
    assert old.read_text() == "kept"
    assert not new.exists()


def test_without_landlock_no_byte_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    code = f"import os; os.write(os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT), b'x')"
    assert confined(code, LIMITS._replace(landlock=False)).returncode in (1, -signal.SIGXFSZ)
    assert path.read_bytes() == b""


@pytest.mark.skipif("the network can be used" in protections(), reason="this kernel cannot")
def test_nobody_is_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = server.getsockname()
        done = confined(f"import socket; socket.create_connection({place!r})")
    assert "PermissionError" in done.stderr or "unreachable" in done.stderr


@pytest.mark.skipif("no network" not in protections(), reason="this kernel cannot")
def test_nothing_is_sent_to_anybody() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        place = server.getsockname()
        done = confined(
            f"import socket; socket.socket(2, socket.SOCK_DGRAM).sendto(b'x', {place!r})"
        )
    assert "unreachable" in done.stderr


def test_a_socket_in_the_file_system_is_reached(tmp_path: Path) -> None:
    """GDB connects to the relay over such a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()
        place = str(tmp_path / "socket")
        done = confined(f"import socket; socket.socket(socket.AF_UNIX).connect({place!r})")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_memory_has_an_end() -> None:
    assert "MemoryError" in confined("bytearray(600 << 20)").stderr
    assert confined("bytearray(200 << 20)").returncode == 0


@pytest.mark.slow
def test_processor_time_has_an_end() -> None:
    began = time.monotonic()
    done = confined("while True: pass", LIMITS._replace(processor=1))
    assert done.returncode == -signal.SIGXCPU
    assert time.monotonic() - began < 30


def test_limits_that_are_lower_stay() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)); "
        "from inspector.live.confine import Limits, confine; confine(Limits(2048)); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[1] >> 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "300", done.stderr


def test_it_ends_with_whoever_started_it() -> None:
    sleeping = launcher(LIMITS._replace(dies=True), ["/bin/sleep", "60"])
    code = (
        f"import subprocess, time; print(subprocess.Popen({sleeping!r}).pid, flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        pid = int(starter.stdout.readline())
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}/comm").read_text().strip() != "sleep":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        starter.kill()
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if " Z " in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_a_program_that_is_not_there_ends_at_once() -> None:
    assert subprocess.run(launcher(LIMITS, ["/no/such"]), check=False).returncode == 127


def test_what_is_in_force_is_said_in_one_line() -> None:
    said = protections()
    assert said.isprintable()
    assert "Landlock" in said
    assert ("no file is written" in said) == bool(landlock_version())
