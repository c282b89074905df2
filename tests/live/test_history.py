"""Which code wrote an rmap word, on a machine that was recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from fixtures.lab.machine import Machine
from fixtures.lab.record import record
from inspector import encoding
from tests.live.tools import Lab, document, inspector

pytestmark = pytest.mark.slow

WRITERS = {"llist_add_batch", "kvmhv_insert_nest_rmap"}


@pytest.fixture(scope="module")
def replay(boot: Callable[..., Lab]) -> Iterator[Machine]:
    """A replay that is at its end (``boot`` only gives it a place for its state)."""
    with record("list-one-lpid", name="recorded") as machine:
        yield machine


def _stands(machine: Machine) -> tuple[str, int]:
    """Return QEMU's status of the replay, and the instruction count at which it is."""
    status = machine.qmp.execute("query-status")["status"]
    return str(status), int(machine.qmp.execute("query-replay")["icount"])


def test_every_writer_of_a_list_is_found(replay: Machine) -> None:
    before = _stands(replay)
    assert before[0] == "paused"
    (gfn, words) = max(
        ((gfn, words) for (_, gfn), words in replay.expectation.slots.items()),
        key=lambda item: len(item[1]),
    )
    done = inspector("history", replay.target, "--gfn", hex(gfn), "--limit", "200", "--json")
    assert done.returncode == 0, done.stderr
    found = document(done)
    assert found["complete"]
    assert found["until"] == found["end"] == before[1]
    assert _stands(replay) == before

    (slot,) = found["words"]
    writes = found["writes"]
    assert found["total"] == len(writes)
    assert writes[0]["new"] == slot["value"]
    counts = [write["count"] for write in writes]
    assert counts == sorted(counts, reverse=True)
    for newer, older in itertools.pairwise(writes):
        assert newer["old"] == older["new"]

    inserted = [write for write in writes if write["function"] in WRITERS]
    for write in inserted:
        callers = [place["function"] for place in write["callers"]]
        assert "kvmhv_insert_nest_rmap" in [write["function"], *callers]
        assert write["instruction"].startswith("std")
    # The first entry is a word; with the second the slot is emptied, and a node put there.
    assert len(inserted) == len(words) + 1
    assert int(inserted[-1]["new"], 16) == words[-1]
    assert encoding.is_single(words[-1])

    (cleared,) = (
        write for write in writes if write["of_kvm"] and write["count"] < inserted[-1]["count"]
    )
    assert "vzalloc" in " ".join(place["function"] for place in cleared["callers"])
    assert not writes[-1]["of_kvm"], "the page had no owner before"


def test_an_entry_and_the_link_to_it(replay: Machine) -> None:
    before = _stands(replay)
    (gfn, words) = next(
        (gfn, words) for (_, gfn), words in replay.expectation.slots.items() if len(words) == 3
    )
    since = str(before[1] // 2)
    done = inspector(
        "history", replay.target, "--gfn", hex(gfn), "--entry", "1", "--since", since, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = document(done)
    entry, link = found["words"]
    assert int(entry["value"], 16) == words[1]
    assert int(link["value"], 16) == int(entry["address"], 16) - 8
    newest = {write["word"]: write for write in reversed(found["writes"])}
    assert int(newest[0]["new"], 16) == words[1]
    assert newest[1]["new"] == link["value"]
    assert "kvmhv_insert_nest_rmap" in [place["function"] for place in newest[1]["callers"]]
    assert _stands(replay) == before


def test_a_part_is_no_verdict_and_the_replay_is_put_back(replay: Machine) -> None:
    before = _stands(replay)
    gfn = next(gfn for _, gfn in replay.expectation.slots)
    done = inspector("history", replay.target, "--gfn", hex(gfn), "--seconds", "0.01", "--json")
    assert done.returncode == 3, done.stderr
    found = document(done)
    assert not found["complete"]
    assert found["until"] < found["end"]
    assert _stands(replay) == before
    assert inspector("check", replay.target).returncode == 0
    assert _stands(replay) == before
