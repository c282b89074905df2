"""Every file that is written: private, and whole or not there."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from inspector.errors import BadData
from inspector.storage import write_aside
from tests.fixtures import DIRECTORY

SMALL = str(DIRECTORY / "powernv9-singles.core.zst")
WRITERS = ("capture", "layout")
OLD = b"what was there before"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def inspect(
    *arguments: str, limit: int | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with umask 0, and where wanted in too little space."""

    def prepare() -> None:
        os.umask(0)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "inspector", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=prepare,
        # Python would keep what it could write of a compiled module
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **extra},
    )


@pytest.mark.parametrize("command", WRITERS)
def test_a_file_is_private_and_whole(command: str, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 240)
    path.write_bytes(OLD)
    path.chmod(0o666)
    full = inspect(command, SMALL, "-o", str(path), limit=100)
    assert full.returncode == 3
    assert "File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert path.read_bytes() == OLD
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert inspect(command, SMALL, "-o", str(path)).returncode == 0
    assert mode(path) == 0o600
    assert path.read_bytes() != OLD
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    code = (
        "import os, pathlib, time; from inspector import storage\n"
        "os.umask(0); os.fsync = lambda descriptor: (print('half', flush=True), time.sleep(60))\n"
        f"storage.write_aside(pathlib.Path({str(path)!r}), b'new' * 100000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert path.read_bytes() == OLD
    (left,) = [one for one in tmp_path.iterdir() if one != path]
    assert mode(left) == 0o600
    assert left.name.startswith(".inspector-")


def test_the_cache_is_private(tmp_path: Path) -> None:
    code = (
        "import os; from dataclasses import replace; from inspector.image import cache\n"
        "from tests.fixtures import pieces, SMALL; os.umask(0)\n"
        "profile = replace(pieces(SMALL)[1], build_id='ab' * 20)\n"
        "symbols = {**profile.symbols, '__start_notes': 1, 'partition_tb': 1}\n"
        "cache.keep(replace(profile, symbols=symbols))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "a" / "b")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    found = list(tmp_path.rglob("*"))
    assert [path.name for path in found if path.is_file()] == ["ab" * 20 + ".json"]
    for path in found:
        assert mode(path) == (0o600 if path.is_file() else 0o700), path


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_what_is_no_file_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = os.stat(path).st_mode
    with pytest.raises(BadData, match="no file"):
        write_aside(path, b"new")
    assert os.stat(path).st_mode == before
