"""``inspector diff``: what it prints, and the code it exits with."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from fixtures.synthetic import FakeVm, MemslotRange, build
from inspector.capture import Capture, write_capture
from inspector.cli import cli
from inspector.model.vm import VmState
from tests.builders import leaf, table, words
from tests.fixtures import DIRECTORY, SMALL

TARGET = str(SMALL)
BEFORE = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x6000))},
    {1: table(leaf(0x6000, 0x40_0000))},
)
AFTER = VmState(
    12,
    table(leaf(0x1000, 0x40_0000)),
    {1: words((1, 0x5000), (1, 0x6000))},
    {1: table(leaf(0x5000, 0x40_0000))},
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["diff", *arguments])


def saved(path: Path, state: VmState) -> str:
    memslot = MemslotRange(0, 512, 0x7F00_0000_0000)
    image = build([FakeVm(state, (memslot,), lpid=9)])
    write_capture(path, Capture(image.memory, image.profile, {}))
    return str(path)


def test_identical_states_say_so() -> None:
    shown = run(TARGET, TARGET)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1] == "no difference"
    document = json.loads(run(TARGET, TARGET, "--json").stdout)
    assert document["schema"] == "inspector.diff/1"
    assert document["same"]
    assert document["whole"]


def test_every_change_is_listed(tmp_path: Path) -> None:
    targets = saved(tmp_path / "a", BEFORE), saved(tmp_path / "b", AFTER)
    shown = run(*targets)
    assert shown.exit_code == 1
    for line in (
        "  rmap: 1 entry added, 0 gone, in 1 slot",
        "    slot of gfn 0x1: 1 -> 2 entries",
        "      + 0x0010000000005000  L2 1:0x5000",
        "  entries that stayed: 1 now stale, 0 now live",
        "  shadow table: 1 appeared, 1 vanished",
        "    L2 1:0x5000 appeared: nothing -> 0x400000 4K RW-rc",
        "    L2 1:0x6000 vanished: 0x400000 4K RW-rc -> nothing",
        "different",
    ):
        assert line in shown.stdout.splitlines()
    (vm,) = json.loads(run(*targets, "--json").stdout)["vms"]
    assert vm["slots"] == [
        {
            "gfn": "0x1",
            "length_before": 1,
            "length_after": 2,
            "added": ["0x10000000005000"],
            "gone": [],
        }
    ]
    assert [(one["kind"], one["address"]) for one in vm["leaves"]] == [
        ("appeared", "0x5000"),
        ("vanished", "0x6000"),
    ]
    assert [(one["before"], one["after"]) for one in vm["turned"]] == [("live", "no_leaf")]


def test_an_expectation() -> None:
    stale = DIRECTORY / "powernv9-stale.core.zst"
    wanted = str(DIRECTORY / "powernv9-stale.json")
    shown = run(str(stale), "--expected", wanted)
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1] == "as expected"
    other = run(str(DIRECTORY / "powernv9-singles.core.zst"), "--expected", wanted)
    assert other.exit_code == 1
    assert "was not expected" in other.stdout
    document = json.loads(run(str(stale), "--expected", wanted, "--json").stdout)
    assert document["schema"] == "inspector.expected/1"
    assert document["same"]


def test_usage() -> None:
    for arguments in ((TARGET,), (TARGET, TARGET, "--expected", str(SMALL))):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "a second target, or --expected" in result.stderr


def test_what_a_target_says_of_itself_is_shown_and_not_sent(tmp_path: Path) -> None:
    name = tmp_path / "e\x1b[2Jvil"
    shown = run(saved(name, BEFORE), str(name))
    assert "\x1b" not in shown.stdout
    assert "\\x1b[2J" in shown.stdout
