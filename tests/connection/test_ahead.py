"""The steps begun before the modules are loaded: used once, and ended if nothing uses them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from inspector.errors import TargetNotSupported
from inspector.live import ahead, gdb


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Return the processes that were started in place of GDB."""
    program = tmp_path / "gdb-multiarch"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    processes: list[subprocess.Popen[bytes]] = []
    start = gdb._started

    def noted(program: str) -> subprocess.Popen[bytes]:
        processes.append(start(program))
        return processes[-1]

    monkeypatch.setattr(gdb, "_started", noted)
    return processes


def test_the_gdb_that_was_started_is_taken_once(started: list[subprocess.Popen[bytes]]) -> None:
    ahead.begin("gdb:127.0.0.1:9")
    assert len(started) == 1
    with gdb.start() as first, gdb.start() as second:
        assert started == [first, second]
        ahead.end()
        assert first.poll() is None, "it is in use"
        first.kill()
        second.kill()


def test_a_gdb_that_nobody_takes_is_ended(started: list[subprocess.Popen[bytes]]) -> None:
    ahead.begin("gdb:no port")
    (process,) = started
    ahead.end()
    assert process.returncode is not None


@pytest.mark.parametrize("word", ["check", "--json", "fixtures/x.core", "raw:gdb:1@0x0"])
def test_other_words_begin_nothing(word: str, started: list[subprocess.Popen[bytes]]) -> None:
    ahead.begin(word)
    assert not started


def test_without_gdb_nothing_is_begun_and_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ahead.begin("gdb:127.0.0.1:9")
    with pytest.raises(TargetNotSupported, match="install it"):
        gdb.start()
    ahead.end()


def test_what_is_behind_a_port_is_looked_at_once(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ahead.begin(f"gdb:127.0.0.1:{port}")
        monkeypatch.setattr(ahead, "process_behind", lambda port: None)
        seen = ahead.behind("127.0.0.1", port)
        assert seen.process == os.getpid()
        assert seen.activity is not None
        assert ahead.behind("127.0.0.1", port) == (None, None)
    ahead.end()


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("gdb:machine:1234", ("machine", 1234)),
        ("gdb:1234", ("127.0.0.1", 1234)),
        ("gdb::1234", ("127.0.0.1", 1234)),
        ("gdb:0.0.0.0:1234", ("127.0.0.1", 1234)),
        ("gdb:[::1]:1234", ("::1", 1234)),
        ("gdb:::1:1234", ("::1", 1234)),
        ("gdb:[::]:1234", ("::1", 1234)),
    ],
)
def test_the_ways_to_write_an_address(target: str, place: tuple[str, int]) -> None:
    assert ahead.address_of(target) == place


@pytest.mark.parametrize(
    "target",
    ["gdb:", "gdb:x:", "gdb:x:0", "gdb:x:65536", "gdb:::1234", "gdb:[::1:12", "gdb:x:\u0661"],
)
def test_what_is_no_address(target: str) -> None:
    with pytest.raises(TargetNotSupported, match=r"gdb:HOST:PORT"):
        ahead.address_of(target)
