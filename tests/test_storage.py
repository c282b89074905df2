"""Every file that is written is private, and is either whole or absent."""

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
from inspector.image.profile import Profile
from inspector.storage import Output, contents_of, parsed_json, write_aside
from tests.fixtures import DIRECTORY

SMALL = str(DIRECTORY / "powernv9-singles.core.zst")
WRITERS = ("capture", "layout")
OLD = b"what was there before"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def inspect(
    *arguments: str, limit: int | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command with umask 0, and optionally with too little space for its files."""

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
        # Python would keep the part of a compiled module that it could write
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **extra},
    )


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(BadData, match="not a file"):
        write_aside(path, b"new")
    assert os.stat(path).st_mode == before


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to("file")
    for before in (None, OLD):
        if before is not None:
            file.write_bytes(before)
        Output(link).write(b"new")
        assert link.is_symlink()
        assert (file.read_bytes(), mode(file)) == (b"new", 0o600)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("/dev/null")
    Output(link).write(b"new")
    assert link.is_symlink()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    Output(pipe).write(b"new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    with pytest.raises(BadData, match="No space left on device"):
        Output("/dev/full").write(b"new")


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_descriptor_is_written_to(name: str, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        there = name.format(file.fileno())
        if name == "link":
            (tmp_path / "link").symlink_to(f"/dev/fd/{file.fileno()}")
            there = str(tmp_path / "link")
        before = os.fstat(file.fileno()).st_ino
        Output(there).write(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "file").stat().st_ino == before


def test_a_file_that_is_there_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    Output(file, clobber=False).write(OLD)
    link.symlink_to("nowhere")
    for path in (file, link):
        kept = Output(path, clobber=False)
        with pytest.raises(BadData, match="leave out --no-clobber"):
            kept.check()
        with pytest.raises(BadData, match="leave out --no-clobber"):
            kept.write(b"new")
    assert (file.read_bytes(), mode(file)) == (OLD, 0o600)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no/file", "No such file"),
        ("file/file", "Not a directory"),
        ("x" * 256, "File name too long"),
        ("loop", "Too many levels"),
        ("dangling", "No such file"),
    ],
)
def test_what_cannot_be_written_is_said_before(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("no/file")
    for attempt in (Output(tmp_path / name).check, lambda: Output(tmp_path / name).write(b"new")):
        with pytest.raises(BadData, match=why):
            attempt()
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".inspector-")]


@pytest.mark.slow
def test_standard_output(tmp_path: Path) -> None:
    for name in ("-", "/dev/stdout", str(tmp_path / "out")):
        with (tmp_path / "out").open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-m", "inspector", "layout", SMALL, "-o", name],
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 0
        assert ": Linux 6.12" in done.stderr
        Profile.from_json((tmp_path / "out").read_bytes())
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large"])
def test_what_is_read_whole_is_a_file_of_bounded_size(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 43)
    with pytest.raises(BadData, match=r"cannot read|at most 10 can be read"):
        contents_of(path, 10)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "[NaN]", "[Infinity]", "[" * 100_000])
def test_documents_that_mean_nothing_certain(text: str) -> None:
    with pytest.raises(ValueError, match=r"twice|not a JSON number|deeply"):
        parsed_json(text)
