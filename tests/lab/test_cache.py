"""A part of the lab's cache is whole, or it is fetched again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fixtures.lab import packages
from fixtures.lab.packages import LabError
from fixtures.lab.packages import cache as parts
from fixtures.lab.packages.apt import FetchError, by_version
from fixtures.lab.packages.search import Search
from fixtures.lab.packages.suites import Release
from tests.lab.archive import ELF, Archive, kernel

KEY = "6.12-4k"
RELEASE = "6.12.107+deb13-powerpc64le"


@pytest.fixture
def directory(cache: Path) -> Path:
    """A kernel in the cache that no archive ever gave."""
    directory = packages.kernel_dir(KEY)
    modules = directory / "lib" / "modules" / RELEASE / "kernel"
    modules.mkdir(parents=True)
    (modules / "one.ko").write_bytes(b"one")
    (modules / "build").symlink_to("/nowhere")
    (directory / "vmlinux").write_bytes(ELF)
    facts = {"release": RELEASE, "package": "linux-image", "version": "6.12.107-1"}
    packages.seal_kernel(directory, facts)
    return directory


def test_a_sealed_kernel(directory: Path) -> None:
    item = packages.cached_kernel(KEY)
    assert item is not None
    assert (item.release, item.version, item.page_shift) == (RELEASE, "6.12.107-1", 12)
    (directory / "made-later").touch()
    assert packages.cached_kernel(KEY) == item


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "7", '"text"', "\x00", "[" * 100_000),
        '{"format": 1}',
        '{"format": 2, "release": "R", "package": "P", "version": "V"}',
        '{"format": 1, "release": 7, "package": "P", "version": "V"}',
        '{"format": 1, "release": "R", "package": ["P"], "version": "V"}',
        f'{{"format": 1, "release": "{RELEASE}", "package": "P"}}',
        '{"format": 1, "release": "R", "package": "P", "version": "V"}',
        f'{{"format": 1, "release": "{"R" * 5000}", "package": "P", "version": "V"}}',
        '{"format": 1, "release": "R\\u0000", "package": "P", "version": "V"}',
        f'{{"format": 1, "release": "{RELEASE}", "package": "P", "version": "V", "contents": 7}}',
    ],
)
def test_a_damaged_record_is_no_record(directory: Path, text: str) -> None:
    (directory / "kernel.json").write_text(text)
    assert packages.cached_kernel(KEY) is None


def test_a_record_that_is_no_text(directory: Path) -> None:
    (directory / "kernel.json").write_bytes(b"\xff\xfe{}")
    assert packages.cached_kernel(KEY) is None
    (directory / "kernel.json").unlink()
    (directory / "kernel.json").mkdir()
    assert packages.cached_kernel(KEY) is None


@pytest.mark.parametrize(
    "name", ["vmlinux", f"lib/modules/{RELEASE}/kernel/one.ko", parts.CONTENTS, "kernel.json"]
)
@pytest.mark.parametrize("damage", ["missing", "short", "empty"])
def test_a_kernel_of_which_something_is_missing(directory: Path, name: str, damage: str) -> None:
    path = directory / name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "short" else b"")
    if name == "kernel.json" and damage == "short":
        # only the end of the last line is missing
        assert packages.cached_kernel(KEY) is not None
    else:
        assert packages.cached_kernel(KEY) is None


def test_a_kernel_of_before_files_were_listed(directory: Path) -> None:
    (directory / parts.CONTENTS).unlink()
    record = json.loads((directory / "kernel.json").read_text())
    del record["contents"]
    (directory / "kernel.json").write_text(json.dumps(record))
    assert packages.cached_kernel(KEY) is not None
    (directory / "vmlinux").write_bytes(b"")
    assert packages.cached_kernel(KEY) is None


def test_a_root_of_before_files_were_listed(cache: Path) -> None:
    root = packages.root_of(packages.BUSYBOX)
    root.mkdir(parents=True)
    assert packages.root_record(root) is None
    (root / ".complete").touch()
    assert packages.root_record(root) is not None
    assert packages.extract(packages.BUSYBOX) == root


def test_what_is_damaged_is_fetched_again(archive: Archive, directory: Path) -> None:
    archive.publish("trixie", kernel("6.12.107-1"))
    (directory / "vmlinux").write_bytes(ELF[:5])
    item = packages.kernel(KEY)
    assert item.vmlinux.read_bytes().endswith(b"6.12.107-1")
    shutil.rmtree(directory)
    directory.write_text("a file in its place")
    assert packages.kernel(KEY).vmlinux.is_file()
    assert list((packages.cache_dir() / "work").iterdir()) == []


def test_workspaces_of_killed_processes_are_removed(cache: Path) -> None:
    with parts.workspace() as mine:
        left = mine.with_name("left-behind")
        (left / "tree").mkdir(parents=True)
        mine.with_name("a-file").touch()
        with parts.workspace() as second:
            assert mine.is_dir()
            assert sorted(mine.parent.iterdir()) == sorted([mine, second])


def test_an_error_of_this_machine_is_not_the_mirrors(archive: Archive) -> None:
    archive.publish("trixie")
    search = Search("it", "ppc64el")
    release = Release("trixie")
    apt = search.open(release)
    assert apt is not None
    full = FetchError("no", {"u": "Error writing to file - write (28: No space left on device)"})

    def fail(*arguments: str, doing: str, cwd: Path | None = None) -> str:
        raise full

    apt.run = fail  # type: ignore[method-assign]
    with pytest.raises(FetchError):
        search.resolve(apt, release, ["it"], archive.folder)


def test_a_cache_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(LabError, match=r"cannot use the cache .*; set INSPECTOR_LAB_CACHE"):
        packages.kernel(KEY)


def test_versions_are_in_debians_order() -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("there is no dpkg on this machine; Debian and its kin have it")
    ordered = ["6.12~rc1-1", "6.12.95-1~bpo12+1", "6.12.95-1", "6.12.107-1", "7.2-1", "1:1.0-1"]
    shuffled = random.Random(7).sample(ordered, len(ordered))
    assert sorted(shuffled, key=by_version) == ordered


# --- killed at any moment ---------------------------------------------------------------------

_INSTALL = """
import sys
from fixtures.lab.packages import apt, kernel, sources
from fixtures.lab.packages.sources import Source
apt.RETRIES = 0
mirror = Source(sys.argv[1], (), None, trusted=True)
sources.mirror = lambda: mirror
sources.host_sources = lambda: iter(())
print(kernel(sys.argv[2]).version)
"""


@pytest.mark.slow
def test_an_installation_that_is_killed_is_done_again(archive: Archive, cache: Path) -> None:
    # The first one is not killed: it shows how long one takes.
    archive.publish("trixie", kernel("6.12.107-1"), kernel("6.12.117-1", fault="missing"))
    command = [sys.executable, "-c", textwrap.dedent(_INSTALL), archive.uri, KEY]
    chance = random.Random("kills")

    def start() -> subprocess.Popen[bytes]:
        shutil.rmtree(cache / "kernels", ignore_errors=True)
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=os.getcwd()
        )

    began = time.monotonic()
    assert start().wait() == 0
    whole = time.monotonic() - began
    for _ in range(6):
        process = start()
        time.sleep(chance.uniform(0, whole))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = packages.cached_kernel(KEY)
        assert kept is None or kept.vmlinux.read_bytes().endswith(b"6.12.107-1")
    item = packages.kernel(KEY)
    assert item.version == "6.12.107-1"
    assert len(list(item.modules.rglob("*.ko.xz"))) == 2
    assert list((cache / "work").iterdir()) == []
