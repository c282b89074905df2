"""Captures compared with their expectations, and with changed expectations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inspector.errors import BadData
from inspector.questions.expected import Departures, departures, read_expected
from tests.fixtures import CAPTURES, DIRECTORY, description, opened

EXPECTED = [path for path in CAPTURES if "expected" in description(path)]
STALE = DIRECTORY / "powernv9-stale.core.zst"


def against(path: Path, wanted: Any, folder: Path) -> Departures:
    written = folder / "expected.json"
    written.write_text(json.dumps(wanted))
    return departures(read_expected(written), opened(path).snapshot)


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.name)
def test_every_capture_is_as_its_maker_expected(path: Path) -> None:
    source = path.with_name(path.name.replace(".core.zst", ".json"))
    assert departures(read_expected(source), opened(path).snapshot).same


def test_what_is_changed_is_what_is_said(tmp_path: Path) -> None:
    wanted = description(STALE)["expected"]
    (vm,) = wanted["vms"]
    vm["slots"]["0x1904"].insert(0, "0x10000007777000")
    vm["slots"]["0x7"] = ["0x10000001009001"]
    del vm["slots"]["0x190e"]
    vm["leaves"].remove("20:0x101e000")
    vm["leaves"].append("3:0x5000")
    (found,) = against(STALE, wanted, tmp_path).vms
    assert [(s.gfn, len(s.gone), len(s.added)) for s in found.slots] == [
        (0x7, 1, 0),
        (0x1904, 1, 0),
        (0x190E, 0, 2),
    ]
    assert found.missing == ((3, 0x5000),)
    assert found.unexpected == ((20, 0x101E000),)


def test_what_nothing_is_said_of_is_not_compared(tmp_path: Path) -> None:
    (vm,) = description(STALE)["expected"]["vms"]
    memslots = [{"base_gfn": s["base_gfn"], "npages": hex(s["npages"])} for s in vm["memslots"]]
    assert against(STALE, {"vms": [{"memslots": memslots}]}, tmp_path).same


def test_a_vm_that_is_not_there_and_one_that_is_not_expected(tmp_path: Path) -> None:
    found = against(STALE, {"vms": [{"memslots": [{"base_gfn": 5, "npages": 1}]}]}, tmp_path)
    assert [(d.expected is None, d.vm is None) for d in found.vms] == [(False, True), (True, False)]
    assert not found.same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"vms": [{}]}',
        '{"vms": [{"memslots": [{"base_gfn": 0}]}]}',
        '{"vms": [{"memslots": [], "leaves": ["x"]}]}',
        '{"vms": [{"memslots": [], "slots": 1}]}',
    ],
)
def test_what_is_no_expectation(tmp_path: Path, text: str) -> None:
    path = tmp_path / "expected.json"
    path.write_text(text)
    with pytest.raises(BadData, match="is not an expectation"):
        read_expected(path)
