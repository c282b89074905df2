"""``inspector lookup``: what it prints, and the code it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fixtures.synthetic import FakeVm, MemslotRange, build
from inspector import encoding
from inspector.capture import Capture, write_capture
from inspector.cli import cli
from inspector.model.vm import VmState
from inspector.questions.lookup import LIMIT
from tests.builders import leaf, table, words
from tests.fixtures import DIRECTORY, SMALL

TARGET = str(SMALL)
GPAS = tuple(range(0x5000, 0x5000 + 0x1000 * (LIMIT + 6), 0x1000))
CROWDED = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words(*((1, gpa) for gpa in GPAS))},
    {1: table(*(leaf(gpa, 0x40_0000) for gpa in GPAS))},
    {1: table(*(leaf(gpa, 0x1000) for gpa in GPAS))},
)
BROKEN = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x6000))},
    {1: table(leaf(0x5000, 0x40_0000))},
    {1: table(leaf(0x5000, 0x1000))},
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["lookup", *arguments])


def saved(path: Path, state: VmState) -> str:
    memslot = MemslotRange(0, 512, 0x7F00_0000_0000)
    image = build([FakeVm(state, (memslot,), lpid=9)])
    write_capture(path, Capture(image.memory, image.profile, {}))
    return str(path)


@pytest.mark.slow
def test_text_and_json_say_the_same() -> None:
    document = json.loads(run(TARGET, "--json", "--l2", "13:0x10000").stdout)
    assert document["schema"] == "inspector.lookup/1"
    assert document["asked"] == "L2 address 13:0x10000"
    (page,) = document["l2_pages"]
    shown = run(TARGET, "--l2", "13:0x10000")
    assert shown.exit_code == 0
    for name in ("l1_entry", "host_entry", "shadow_entry"):
        entry = page[name]
        assert f"4K PTE {entry['permissions']}{entry['recorded']}" in shown.stdout
        assert f"{int(entry['entry'], 16):#018x} at " in shown.stdout
        assert entry["at"] in shown.stdout
    (entry,) = page["entries"]
    assert f"{int(entry['word'], 16):#018x} node {entry['node']}  live" in shown.stdout
    assert page["slot_gfn"] == entry["gfn"] == "0x20"
    assert page["agrees"] is True
    assert page["leaf_state"] == "covered"
    assert encoding.decode(int(entry["word"], 16)) == (13, 0x10000)


@pytest.mark.slow
def test_the_slots_are_those_of_rmap() -> None:
    slots = json.loads(CliRunner().invoke(cli, ["rmap", TARGET, "--json"]).stdout)["slots"]
    for slot in slots[::12]:
        document = json.loads(run(TARGET, "--json", "--gfn", slot["gfn"]).stdout)
        (page,) = document["l1_pages"]
        own = next(one for one in page["slots"] if one["gfn"] == slot["gfn"])
        assert [entry["word"] for entry in own["entries"]] == slot["words"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of"),
        (("--gfn", "1", "--hpa", "1"), "give one of"),
        (("--l2", "5"), "LPID:GPA"),
        (("--l2", "x:5"), "not a number"),
        (("--word", "0x1ffffffffffffffff"), "64 bits"),
    ],
)
def test_usage(arguments: tuple[str, ...], said: str) -> None:
    result = run(TARGET, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.slow
def test_long_lists_are_cut_and_said_to_be(tmp_path: Path) -> None:
    target = saved(tmp_path / "crowded", CROWDED)
    cut = run(target, "--gfn", "1")
    assert "... and 6 more L2 pages (--all shows them)" in cut.stdout
    assert f"... {len(GPAS) - 12} more (--all shows them)" in cut.stdout
    whole = run(target, "--gfn", "1", "--all").stdout
    assert "more" not in whole
    assert all(f"L2 1:{gpa:#x} (4K)" in whole for gpa in GPAS)
    assert json.loads(run(target, "--gfn", "1", "--json").stdout)["l2_pages_left_out"] == 6


def test_a_finding_on_the_way_is_shown_and_told_by_the_exit_code(tmp_path: Path) -> None:
    target = saved(tmp_path / "broken", BROKEN)
    shown = run(target, "--l2", "1:0x5000")
    assert shown.exit_code == 1
    assert "finding 1: shadow-leaf-covered" in shown.stdout
    assert "shadow leaf not found again by L0" in shown.stdout
    (page,) = json.loads(run(target, "--gfn", "1", "--json").stdout)["l1_pages"]
    assert page["slots"][0]["findings"] == ["shadow-leaf-covered"]


def test_a_hash_guest_has_nothing_to_look_into() -> None:
    result = run(str(DIRECTORY / "powernv9-hash.core.zst"), "--gfn", "1")
    assert result.exit_code == 0
    assert "has the hash MMU" in result.stdout
