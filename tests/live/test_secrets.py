"""Guests' memory is full of marks, and nothing that the inspector writes contains one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fixtures.lab.planted import MARK, plant, produced, searched
from inspector.capture import read_capture
from inspector.dumps.elfcore import open_core
from tests.live.tools import Lab

MEMORY = 2 << 30
"""What machines of the lab have."""

FEW = (
    ("capture", "-o", "capture"),
    ("capture", "-o", "capture-gdb", "--read-path", "gdb"),
    ("layout", "-o", "layout"),
    ("rmap", "--jsonl"),
)


def test_no_mark_of_a_guest_is_written(boot: Callable[..., Lab], tmp_path: Path) -> None:
    lab = boot("two-vms")
    assert plant(lab.machine) > 1000
    assert lab.run("check").returncode == 0
    found = {one.what: one for one in searched(produced(lab.machine, tmp_path, FEW))}
    assert found.keys() >= {"captures", "captured memory", "printed by rmap", "layout profiles"}
    assert all(one.size for one in found.values())
    assert {what: one.marks for what, one in found.items()} == dict.fromkeys(found, 0)
    for name in ("capture", "capture-gdb"):
        taken = read_capture(open_core(tmp_path / name))
        assert taken is not None
        assert taken.memory.ram is not None
        assert taken.memory.ram.total == MEMORY
    lab.assert_untouched()


def test_a_mark_would_be_found() -> None:
    word = int.from_bytes(MARK, "little")
    for data in (b"x" + MARK * 2, f"{word:#018x}".encode(), f"{word:X}".encode(), b"%d" % word):
        (one,) = searched(iter([("control", data)]))
        assert one.marks, data
