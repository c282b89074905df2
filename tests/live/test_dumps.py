"""Dumps of a real machine by every program that writes them, compared with the exerciser."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fixtures.lab import dumps, packages
from fixtures.lab.machine import Machine, MachineSpec
from fixtures.lab.packages import LabError
from inspector.dumps.formats import open_dump
from tests.live.tools import Lab, document, inspector, need_kernel

LARGE_PAGES = "6.12-64k"
CACHE = packages.cache_dir()
SAVING = 180.0
"""Seconds in which QEMU writes 2 GiB to a disk that others write to."""
MAKEDUMPFILE = {
    "-d 1 -l": ("lzo", 1),
    "-d 1 -z": ("zstd", 1),
    "-d 31 -c": ("zlib", 31),
    "-d 31": ("not compressed", 31),
    "-d 31 -z -F": ("zstd", 31),
    # Level 1 drops zero pages, and an ELF file cannot say that they were zero.
    "-d 30 -E": ("ELF core", None),
}


@pytest.fixture(autouse=True)
def _cache_of_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the lab's own cache of downloads; the inspector has a separate cache in tests."""
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(CACHE))


def _assert_agrees(lab: Lab, target: str, *, filtered: bool) -> None:
    """The words of every slot are the exerciser's, and the verdict needs no guest memory."""
    listed = inspector("rmap", "--jsonl", target, *lab.files)
    assert listed.returncode == 0, listed.stderr
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    expected = lab.machine.expectation.slots
    assert {int(r["gfn"], 16): [int(w, 16) for w in r["words"]] for r in rows} == {
        gfn: words for (_, gfn), words in expected.items()
    }
    checked = inspector("check", "--json", target, *lab.files)
    found = document(checked)
    assert (checked.returncode, found["verdict"]) == (0, "consistent")
    (vm,) = found["vms"]
    lost = [item["reason"] for item in vm["not_judged"] if "is not readable" in item["reason"]]
    assert bool(lost) is filtered
    for note in lost:
        assert note.startswith("L1's table")
        assert "excluded by makedumpfile's dump level 31" in note or "left out" in note


@pytest.fixture(scope="module")
def vmcore(
    boot: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lab, Path]]:
    """Return a machine and its vmcore, made once and removed at the end: it is large."""
    lab = boot("mixed")
    path = tmp_path_factory.mktemp("dumps") / "vmcore"
    dumps.vmcore(lab.machine, path)
    yield lab, path
    path.unlink()


def _made(core: Path, path: Path, options: str) -> None:
    try:
        dumps.makedumpfile(core, path, *options.split())
    except LabError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_64k_pages(boot: Callable[..., Lab], tmp_path: Path) -> None:
    need_kernel(LARGE_PAGES)
    core, path = tmp_path / "vmcore", tmp_path / "dump"
    with Machine.start(MachineSpec(kernel=LARGE_PAGES, memory="1G", name="large-pages")) as machine:
        lab = Lab(machine)
        dumps.vmcore(machine, core)
        _made(core, path, "-d 31 -l")
        core.unlink()
        _assert_agrees(lab, str(path), filtered=True)


@pytest.mark.parametrize("options", MAKEDUMPFILE)
def test_makedumpfile(vmcore: tuple[Lab, Path], tmp_path: Path, options: str) -> None:
    lab, core = vmcore
    path = tmp_path / "dump"
    _made(core, path, options)
    kind, level = MAKEDUMPFILE[options]
    dump = open_dump(path)
    assert kind in dump.kind
    assert dump.dump_level == level
    assert ("flattened" in dump.kind) is ("-F" in options)
    assert dump.vmcoreinfo is not None
    assert f"OSRELEASE={lab.machine.state.release}\n" in dump.vmcoreinfo
    _assert_agrees(lab, str(path), filtered=level != 1)


def test_split(vmcore: tuple[Lab, Path], tmp_path: Path) -> None:
    lab, core = vmcore
    path = tmp_path / "dump"
    try:
        dumps.makedumpfile(core, path, "-d", "31", "-z", parts=3)
    except LabError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    names = [str(one) for one in dumps.part_paths(path, 3)]
    _assert_agrees(lab, "split:" + ",".join(names), filtered=True)
    for lost in range(3):
        others = [name for number, name in enumerate(names) if number != lost]
        assert "is in other files" in open_dump("split:" + ",".join(others)).lacks
    alone = inspector("check", names[1])
    assert alone.returncode == 3
    assert "is in other files of this split dump" in alone.stderr


def test_vmcore(vmcore: tuple[Lab, Path]) -> None:
    lab, core = vmcore
    _assert_agrees(lab, str(core), filtered=False)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["kdump-zlib", "kdump-raw-zlib", "kdump-lzo", "kdump-snappy"])
def test_qemu(boot: Callable[..., Lab], tmp_path: Path, form: str) -> None:
    lab = boot("mixed")
    path = tmp_path / "dump"
    known = dumps.qemu_formats(lab.machine)
    if form not in known:
        pytest.skip(f"this QEMU was built to write {', '.join(known)}")
    dumps.qemu_dump(lab.machine, path, form)
    try:
        assert ("flattened" in open_dump(path).kind) is ("raw" not in form)
        _assert_agrees(lab, str(path), filtered=False)
    finally:
        path.unlink()


def test_raw_image(boot: Callable[..., Lab], tmp_path: Path) -> None:
    lab = boot("mixed")
    path = tmp_path / "memory"
    with lab.machine.qmp.waiting(SAVING) as qmp:
        qmp.execute("pmemsave", val=0, size=1 << 31, filename=str(path))
    try:
        _assert_agrees(lab, f"raw:{path}@0x0", filtered=False)
        moved = inspector("check", f"raw:{path}@0x100000", *lab.files)
        assert moved.returncode == 3
        assert "Traceback" not in moved.stderr
    finally:
        path.unlink()
