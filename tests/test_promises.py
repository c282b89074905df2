"""The records of campaigns, the page that is made of them, and the kinds of packets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.lab import promise
from fixtures.lab.endings import COMMANDS, ENDINGS
from fixtures.lab.interruptions import Outcome, cells, rows
from fixtures.lab.packets import FORBIDDEN, REFUSED, counted, kind_of
from fixtures.lab.promise import KEYS, Notes, Promise, read_all, read_notes
from fixtures.lab.promises import STATEMENTS, TITLES, page


@pytest.mark.parametrize(
    "packet",
    [
        "M1000,4:00000000",
        "X1000,0:",
        "G00",
        "P41=00",
        "vFlashWrite:0:00",
        "Z0,1000,4",
        "k",
        "vKill;1",
        "qRcmd," + b"migrate file:/x".hex(),
        "qRcmd," + b"info mtree; stop".hex(),
        "QTinit",
        "cc000000000001000",
        "qRcmd,zz",
    ],
)
def test_a_packet_that_writes_or_is_not_known(packet: str) -> None:
    assert kind_of(packet) in FORBIDDEN


@pytest.mark.parametrize(
    "packet",
    [
        "m1000,800",
        "g",
        "p41",
        "vCont;c",
        "vCont?",
        "\x03",
        "D;1",
        "?",
        "Hg0",
        "Z1,c008000000000000,4",
        "z2,c008000000000000,8",
        "Qqemu.PhyMemMode:1",
        "qqemu.PhyMemMode",
        "qXfer:features:read:target.xml:0,ffb",
        "qRcmd," + b"info mtree -f".hex(),
        "qRcmd," + b"gpa2hva 0x1000".hex(),
    ],
)
def test_a_packet_that_may_be_sent(packet: str) -> None:
    assert kind_of(packet) not in FORBIDDEN


def test_only_what_went_to_the_stub_counts() -> None:
    log = ["1.0 > m0,8", "1.1 < 0000000000000000", "1.2 ! X0,0:", "1.3 > M0,1:00", ""]
    counts, examples = counted(log)
    assert counts.total() == 3
    assert counts[REFUSED] == 1
    assert list(examples.values()) == ["M0,1:00"]


def test_every_way_to_end_is_tried_before_any_is_again() -> None:
    every = {(command, ending.what) for ending in ENDINGS for command in ending.only}
    count = sum(len(ending.only) * len(ending.read_paths) for ending in ENDINGS)
    tried = list(cells(2 * count, seed=1))
    assert {(one.command, one.ending.what) for one in tried[:count]} == every
    assert len(set(tried[:count])) == count
    assert not any(one.ending.boots for one in tried[count:])
    assert set(COMMANDS) == {one.command for one in cells(100, 1, ["SIGINT"])}


def test_a_run_with_faults_is_a_failure() -> None:
    fine = Outcome("check", "gdb", "SIGTERM", in_time=True, attached=True, seconds=0.5)
    bad = Outcome("rmap", "gdb", "SIGTERM", faults=["the machine is paused"])
    (row,) = rows([fine, bad])
    assert (row["runs"], row["failed"], row["commands"], row["while attached"]) == (2, 1, 2, 1)


def test_the_page_has_every_promise_and_what_failed() -> None:
    rows = [
        {"what": "a | b", "runs": 1200, "failed": 2, "longest, s": 0.25},
        {"what": "c", "runs": 3, "failed": 0, "kernel": "6.12"},
    ]
    record = Promise("secrets", "planted", "It was done.", "lab x", "2026-01-02", rows)
    made = page([record], {"secrets": Notes(mended=("One thing.",), uncovered=("Another.",))})
    assert set(KEYS) == set(TITLES) == set(STATEMENTS)
    assert all(f"## {title}\n" in made for title in TITLES.values())
    assert "| [Secrets](#secrets) | 1,203 | 2 |" in made
    assert "| [Never writes](#never-writes) | not yet |  |" in made
    assert "| a \\| b | 1,200 | 2 | 0.2 |  |" in made
    assert "| c | 3 | 0 |  | 6.12 |" in made
    assert "* One thing." in made
    assert "* Another." in made


def test_the_records_that_are_there_can_be_read() -> None:
    assert set(read_notes()) <= set(KEYS)
    for record in read_all():
        assert record.runs > 0


def test_a_record_keeps_the_rows_of_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promise, "DIRECTORY", tmp_path)
    for what, failed in (("one", 1), ("two", 0), ("one", 0)):
        row = {"what": what, "runs": 5, "failed": failed}
        promise.join("long-runs", "name", "how", "lab name", [row])
    (record,) = read_all(tmp_path)
    assert [(row["what"], row["failed"]) for row in record.rows] == [("one", 0), ("two", 0)]
