"""A recording of a real kernel, replayed: as it is, tampered with, cut off and damaged."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from inspector.cli import cli
from inspector.errors import BadData, TargetNotSupported
from inspector.following.calls import read_calls
from inspector.following.replay import Replayed, follower_of, replay
from inspector.image.elf import unpacked
from inspector.kvm.snapshot import Rmaps
from inspector.model.events import Call, Return
from inspector.options import Options
from inspector.session import Acquired, acquire

DIRECTORY = Path(__file__).resolve().parent.parent / "fixtures" / "recordings"
RECORDING = DIRECTORY / "powernv9-random.jsonl.zst"
CAPTURE = DIRECTORY / "powernv9-random.core.zst"

Row = dict[str, Any]


@functools.cache
def rows() -> tuple[Row, ...]:
    return tuple(map(json.loads, unpacked(RECORDING).splitlines()))


@functools.cache
def end() -> Acquired:
    return acquire(str(CAPTURE), Options())


def write(path: Path, changed: list[Row] | tuple[Row, ...]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
    return path


def replayed(path: Path) -> Replayed:
    return replay(read_calls(path), end().snapshot)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["replay", *arguments])


def test_a_recording_ends_where_the_capture_is() -> None:
    outcome = replayed(RECORDING)
    calls = [row for row in rows() if "f" in row]
    assert outcome.same
    assert outcome.equal_after == outcome.calls.total() == len(calls)
    assert outcome.beyond == 0
    assert outcome.entries > 50
    assert outcome.leaves > 20


@pytest.mark.slow
def test_the_command_says_so() -> None:
    done = run(str(RECORDING), str(CAPTURE))
    assert done.exit_code == 0
    assert done.output.endswith("verdict: same\n")
    document = json.loads(run(str(RECORDING), str(CAPTURE), "--json").output)
    assert document["schema"] == "inspector.replay/1"
    assert document["verdict"] == "same"
    assert document["divergence"] is None
    assert document["calls"] == sum(document["calls_by_function"].values())


def call_of(number: int) -> Row:
    return next(row for row in rows() if row.get("n") == number and "f" in row)


def flipped(word: str) -> str:
    return f"{int(word, 16) ^ 0x1000:#x}"


def first(function: str, wanted: Callable[[Row], bool], *, back: bool = False) -> int:
    """Return the number of the first ``wanted`` call of a function, or of its return (``back``)."""
    for index, row in enumerate(rows()[1:], 1):
        if ("ret" in row) is back and call_of(row["n"])["f"] == function and wanted(row):
            return index
    raise AssertionError(f"the recording has no such {function}")


def is_list(row: Row) -> bool:
    return len(row["slot"]) > 3


INSERT, REMOVE = "kvmhv_insert_nest_rmap", "kvmhv_remove_nest_rmap_range"


@pytest.mark.slow
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("back", [False, True])
def test_a_word_of_a_list_that_differs(tmp_path: Path, place: int, back: bool) -> None:
    index = first(INSERT, is_list, back=back)
    changed = list(rows())
    slot = list(changed[index]["slot"])
    slot[place] = flipped(slot[place])
    changed[index] = changed[index] | {"slot": slot}
    path = write(tmp_path / "changed.jsonl", changed)
    divergence = replayed(path).divergence
    assert divergence is not None
    assert divergence.number == changed[index]["n"]
    assert divergence.function == INSERT
    assert divergence.expected[place] != divergence.found[place]
    done = run(str(path), str(CAPTURE))
    assert done.exit_code == 1
    assert f"call {divergence.number}: {INSERT}(" in done.output
    assert "book3s_hv_nested.c" in done.output
    assert "differs" in done.output
    document = json.loads(run(str(path), str(CAPTURE), "--json").output)
    assert document["divergence"]["call"] == divergence.number
    assert document["divergence"]["found"][place] == f"{divergence.found[place]:#018x}"


@pytest.mark.parametrize(
    ("function", "caught_in"),
    [(INSERT, "kvmppc_create_pte"), (REMOVE, "kvmppc_unmap_pte")],
)
def test_a_call_that_is_left_out(tmp_path: Path, function: str, caught_in: str) -> None:
    number = rows()[first(function, lambda row: "in" in row)]["n"]
    inside = {number}
    for row in rows()[1:]:
        if row.get("in") in inside:
            inside.add(row["n"])
    kept = [row for row in rows() if row.get("n") not in inside]
    divergence = replayed(write(tmp_path / "less.jsonl", kept)).divergence
    assert divergence is not None
    assert divergence.function == caught_in
    assert divergence.number == call_of(number)["in"]


@pytest.mark.slow
def test_the_end_that_is_cut_off(tmp_path: Path) -> None:
    last = max(i for i, row in enumerate(rows()) if row.get("f") == INSERT)
    outer = rows()[last]["in"]
    cut = next(i for i, row in enumerate(rows()) if row.get("n") == outer)
    path = write(tmp_path / "cut.jsonl", rows()[:cut])
    outcome = replayed(path)
    assert outcome.divergence is None
    assert not outcome.same
    assert any(d.what.startswith("the slot at") for d in outcome.differences)
    done = run(str(path), str(CAPTURE))
    assert done.exit_code == 1
    assert "verdict: diverged at the end" in done.output


@pytest.mark.slow
def test_calls_made_behind_the_capture(tmp_path: Path) -> None:
    commit = next(row for row in rows() if row.get("f", "").endswith("commit_memory_region_hv"))
    number = rows()[-1]["n"] + 1
    freed = {name: commit[f"third_{name}"] for name in ("base_gfn", "npages", "rmap")}
    more = [
        {"n": number, "cpu": 0, "f": "kvmppc_core_free_memslot_hv", "args": ["0x0"]} | freed,
        {"n": number, "ret": "0x0"},
    ]
    outcome = replayed(write(tmp_path / "more.jsonl", [*rows(), *more]))
    assert outcome.same
    assert outcome.beyond == 1
    assert outcome.equal_after == number - 1


def test_the_last_line_may_be_half_written(tmp_path: Path) -> None:
    path = write(tmp_path / "half.jsonl", rows())
    path.write_text(path.read_text() + '{"n":99999,"f":"kvm')
    assert replayed(path).same


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"n":1}',
        "[" * 100_000,
        '{"n":1,"ret":"0x10000000000000000"}',
        '{"n":1,"ret":"-0x1"}',
        r'{"n":1,"f":"\ud800","args":[]}',
        '{"n":1,"f":"kvmhv_insert_nest_rmap","args":["x"]}',
        '{"n":1,"f":"kvmhv_insert_nest_rmap","args":["0x1","0x2","0x3"]}',
        '{"n":1,"f":"kvmhv_remove_nest_rmap_range","args":["0x1"],"slots":[[]]}',
        '{"n":1,"f":"kvmppc_create_pte","args":["0x1"],"host_lpid":"0x1","word":null}',
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "damaged.jsonl", rows()[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadData, match=r"line 2 of the recording|is missing a word") as caught:
        replayed(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("part", ["array", "range", "page"])
def test_absurd_sizes_cost_nothing(tmp_path: Path, part: str) -> None:
    """Whatever sizes a call claims, the replay visits only slots that are known."""
    most, vm, rmap = hex((1 << 64) - 4096), "0xc000000032e88000", "0xc008000000240000"
    array = {"third_rmap": rmap, "third_base_gfn": "0x0", "third_npages": most}
    commit = {"n": 1, "f": "kvmppc_core_commit_memory_region_hv", "args": [vm]} | array
    commit["fourth_rmap"] = None
    free = {"n": 2, "f": "kvmppc_core_free_memslot_hv", "args": ["0x0"], "rmap": rmap}
    remove = {"n": 2, "f": "kvmhv_remove_nest_rmap_range", "args": [vm, "0x0", "0x0", "0x0", most]}
    unmap = {"n": 2, "f": "kvmppc_unmap_pte", "args": [vm, "0x0", "0x0", most, "0x0", "0x1"]}
    calls: dict[str, list[Row]] = {
        "array": [commit, free],
        "range": [remove | {"base_gfn": "0x0", "rmap": rmap, "slots": []}],
        "page": [unmap | {"host_lpid": "0x1", "pte": "0x0"}],
    }
    path = write(tmp_path / "absurd.jsonl", [rows()[0], *calls[part]])
    if part == "page":
        with pytest.raises(BadData, match="a page of 2"):
            replayed(path)
    else:
        assert not replayed(path).same


@pytest.mark.parametrize(
    "text", ["", "{}\n", "\x00\xff\n", '{"schema":"inspector.check/1"}\n', "[]\n"]
)
def test_a_file_that_is_no_recording(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(BadData, match=r"is not a recording|has the format"):
        read_calls(path)


def test_another_kernel(tmp_path: Path) -> None:
    changed = [rows()[0] | {"release": "5.0"}, *rows()[1:]]
    with pytest.raises(TargetNotSupported, match=r"of Linux 5\.0"):
        replayed(write(tmp_path / "other.jsonl", changed))


def test_a_follower_can_begin_with_a_snapshot() -> None:
    follower = follower_of(end().snapshot, tables=True)
    vm = end().snapshot.vms[0]
    for slot in vm.rmaps:
        assert follower.words(slot.where)[0] == slot.head
        assert follower.gfn_of(slot.where) == slot.gfn
    assert len(follower.vms[vm.address].guests) == len(vm.nested)


def test_events_have_what_the_lines_have() -> None:
    events = list(read_calls(RECORDING).events())
    assert len(events) == len(rows()) - 1
    for event, row in zip(events, rows()[1:], strict=True):
        assert event.number == row["n"]
        assert isinstance(event, Return if "ret" in row else Call)


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["tail", "whole"])
def test_a_list_without_an_end(cut: str) -> None:
    vm = end().snapshot.vms[0]
    index = int(np.argmax(vm.rmaps.length))
    begin, last = int(vm.rmaps.start[index]), int(vm.rmaps.start[index + 1])
    kept = slice(begin, last - 1) if cut == "tail" else slice(begin, begin)
    rmaps = Rmaps(
        memslot=vm.rmaps.memslot[[index]],
        gfn=vm.rmaps.gfn[[index]],
        where=vm.rmaps.where[[index]],
        head=vm.rmaps.head[[index]],
        start=np.asarray([0, kept.stop - kept.start]),
        word=vm.rmaps.word[kept],
        node=vm.rmaps.node[kept],
        place=vm.rmaps.place[kept],
    )
    broken = dataclasses.replace(end().snapshot, vms=(dataclasses.replace(vm, rmaps=rmaps),))
    with pytest.raises(TargetNotSupported, match="has no end"):
        follower_of(broken, tables=False)
    outcome = replay(read_calls(RECORDING), broken)
    where = f"{int(vm.rmaps.where[index]):#x}"
    assert any(where in difference.what for difference in outcome.differences)
