"""Every document of every command matches its schema, and every described member occurs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import inspector
from fixtures.mutations.damage import BROKEN, PENDING
from fixtures.mutations.mutant import Mutant
from fixtures.schemas.documents import DOCUMENTS
from inspector import pte
from inspector.cli import COMMANDS, cli
from inspector.following.history import History, Write
from inspector.following.sweep import Watched
from inspector.following.trace import Trace
from inspector.kernel.choose import DescribedKernel
from inspector.kernel.symbols import CodePlace
from inspector.kvm.snapshot import Gap, Part, Snapshot
from inspector.live.control import Instruction
from inspector.model.events import Divergence
from inspector.model.vm import VmState
from inspector.options import Options
from inspector.session import Acquired
from inspector.watch import sampled
from tests.builders import leaf, snapshot_vm, table, words
from tests.cli.test_diff import AFTER, BEFORE
from tests.cli.test_diff import saved as saved_state
from tests.cli.test_lookup import BROKEN as BROKEN_STATE
from tests.cli.test_lookup import CROWDED
from tests.fixtures import CAPTURES, DIRECTORY, SMALL, opened
from tests.schemas.closed import described, hold
from tests.test_replay import CAPTURE as RECORDED
from tests.test_replay import INSERT, RECORDING, first, flipped, rows, write
from tests.test_watch import sample_of

SEEN: set[str] = set()
"""The paths that the tests of this module have seen; the last test compares them with all."""

RAN: set[str] = set()
MADE: dict[str, Acquired] = {}
"""Targets that are not files, by the names that are given to commands."""


def told(name: str, *arguments: str) -> Any:
    """Run a command, check the document that it printed against a schema, and return it."""
    text = printed(*arguments)
    document = json.loads(text)
    SEEN.update(hold(name, document))
    RAN.add(name)
    return document


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 3), result.output
    return result.stdout


def lines(name: str, *arguments: str) -> None:
    """Do the same for a command that prints a document on each line."""
    for line in printed(*arguments).splitlines()[:30]:
        SEEN.update(hold(name, json.loads(line)))
    RAN.add(name)


@pytest.fixture(autouse=True)
def _opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open each capture once for all commands, and the snapshots that a test has made."""

    def acquire(target: str, options: Options, progress: object) -> Acquired:
        return MADE[target] if target in MADE else opened(Path(target))

    monkeypatch.setattr("inspector.cli.common.acquire", acquire)


def made(name: str, snapshot: Snapshot, **origin: Any) -> str:
    """Return the name of a target with this snapshot."""
    acquired = opened(SMALL)
    MADE[name] = replace(
        acquired, snapshot=snapshot, origin=replace(acquired.origin, target=name, **origin)
    )
    return name


@pytest.mark.slow
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name.removesuffix(".core.zst"))
def test_captures(path: Path) -> None:
    target = str(path)
    for name in ("check", "vms", "rmap"):
        told(name, name, target, "--json")
    lines("rmap-line", "rmap", target, "--jsonl")
    told("lookup", "lookup", target, "--gfn", "0x20", "--json")


BOOKKEEPING = [case for case in BROKEN if case[1] == {"rmap-slot"}]
OF_NO_VM = [case for case in BROKEN if case[1] == {"vm-list"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutation",
    [case[0] for case in (*BROKEN[::12], *BOOKKEEPING, *OF_NO_VM, *PENDING[:2])],
    ids=lambda mutation: mutation.__name__,
)
def test_damaged_captures(mutation: Callable[[Mutant], None], tmp_path: Path) -> None:
    mutant = Mutant(SMALL)
    mutation(mutant)
    target = str(mutant.save(tmp_path / "mutant.core.zst"))
    document = told("check", "check", target, "--json")
    of_vms = any(vm["findings"] or vm["pending"] for vm in document["vms"])
    assert document["findings"] or of_vms
    told("diff", "diff", str(SMALL), target, "--json")


NO_HOST_PAGE = VmState(12, table(), {1: words((1, 0x6000))}, {1: table(leaf(0x6000, 0x40_0000))})


def test_what_may_be_on_its_way(tmp_path: Path) -> None:
    """A shadow leaf that permits nothing: a state that KVM may be about to leave."""
    bits = leaf(0, 0).entry & ~pte.PERMISSIONS
    state = VmState(12, NO_HOST_PAGE.host, {}, {1: table(leaf(0x6000, 0x40_0000, 12, bits))})
    (vm,) = told("check", "check", saved_state(tmp_path / "one", state), "--json")["vms"]
    assert [doubt["invariant"] for doubt in vm["doubts"]] == ["entry-bits"]


def test_what_could_not_be_read() -> None:
    snapshot = opened(SMALL).snapshot
    (vm,) = snapshot.vms
    gaps = tuple(Gap(f"{part.value} are missing", part, whole=True) for part in Part)
    nested = tuple(replace(one, l1=None, partition=None, refcnt=(1 << 64) - 1) for one in vm.nested)
    slots = tuple(replace(slot, npages=(1 << 64) - 1) for slot in vm.memslots)
    lost = replace(
        vm, gaps=gaps, pid=None, partition=None, locked=True, nested=nested, memslots=slots
    )
    target = made("lost", replace(snapshot, vms=(lost,), gaps=(Gap("a VM is missing"),)))
    assert told("check", "check", target, "--json")["verdict"] == "inconclusive"
    (shown,) = told("vms", "vms", target, "--json")["vms"]
    assert shown["memslots"][0]["npages"] == (1 << 64) - 1
    told("rmap", "rmap", target, "--json")
    told("diff", "diff", target, str(SMALL), "--json")
    told("lookup", "lookup", target, "--gfn", "0x20", "--json")
    wanted = str(SMALL).replace(".core.zst", ".json")
    told("expected", "diff", target, "--expected", wanted, "--json")
    partly = replace(vm, gaps=gaps, unread_guests=None, nested=())
    target = made("partly", replace(snapshot, vms=(partly,)))
    told("lookup", "lookup", target, "--gfn", "0x20", "--json")
    told("diff", "diff", target, str(SMALL), "--json")
    told("expected", "diff", target, "--expected", wanted, "--json")


def test_an_entry_without_a_host_page(tmp_path: Path) -> None:
    (vm,) = told("check", "check", saved_state(tmp_path / "one", NO_HOST_PAGE), "--json")["vms"]
    assert vm["stale_by_reason"] == {"no_host_page": 1}


def test_a_live_machine_and_other_kernels_met() -> None:
    target = made(
        "gdb:127.0.0.1:1",
        opened(SMALL).snapshot,
        stopped_seconds=0.0161234,
        stops=2,
        attempts=1,
        found_stopped=False,
        rejected=("the kernel at 0x1000 is a guest's",),
    )
    found = told("check", "check", target, "--json")["target"]
    assert (found["stopped_ms"], found["stops"], len(found["rejected"])) == (16.123, 2, 1)


def test_invariants() -> None:
    told("invariants", "check", "--list", "--json")


@pytest.mark.parametrize(
    "question",
    [
        ("--gfn", "0x20"),
        ("--l2", "13:0x10000"),
        ("--l2", "13:0x7fff0000"),
        ("--gpa", "0x7fff0000000"),
        ("--hpa", "0x1000"),
        ("--word", "0x0"),
        ("--address", "0xc000000000000000"),
    ],
    ids="=".join,
)
def test_lookup(question: tuple[str, ...], tmp_path: Path) -> None:
    told("lookup", "lookup", str(SMALL), *question, "--json")


@pytest.mark.slow
def test_lookup_all_the_way(tmp_path: Path) -> None:
    first_ = told("lookup", "lookup", str(SMALL), "--gfn", "0x20", "--json")
    host = first_["l1_pages"][0]["host"]
    told("lookup", "lookup", str(SMALL), "--hpa", host, "--json")
    for name, state in (("broken", BROKEN_STATE), ("crowded", CROWDED)):
        target = saved_state(tmp_path / name, state)
        told("lookup", "lookup", target, "--gfn", "1", "--json")
        told("lookup", "lookup", target, "--l2", "1:0x6000", "--json")


@pytest.mark.slow
def test_diff(tmp_path: Path) -> None:
    before, after = (
        saved_state(tmp_path / name, state) for name, state in (("a", BEFORE), ("b", AFTER))
    )
    told("diff", "diff", before, after, "--json")
    small, large = (
        saved_state(
            tmp_path / f"size{shift}",
            VmState(12, table(leaf(0x20_0000, 0x40_0000, shift)), {}, {}),
        )
        for shift in (12, 21)
    )
    (vm,) = told("diff", "diff", small, large, "--json")["vms"]
    assert [one["kind"] for one in vm["leaves"]] == ["resized"]
    snapshot = opened(SMALL).snapshot
    (vm,) = snapshot.vms
    fewer = made("fewer guests", replace(snapshot, vms=(replace(vm, nested=vm.nested[1:]),)))
    told("diff", "diff", str(SMALL), fewer, "--json")
    told("diff", "diff", fewer, str(SMALL), "--json")
    for one, other in (("two-vms", "singles"), ("singles", "two-vms"), ("hugetlb", "no-vms")):
        paths = (str(DIRECTORY / f"powernv9-{name}.core.zst") for name in (one, other))
        told("diff", "diff", *paths, "--json")


def test_diff_of_hash_guests() -> None:
    snapshot = opened(DIRECTORY / "powernv9-hash.core.zst").snapshot
    vm = max(snapshot.vms, key=lambda one: len(one.hash_rmaps))
    found = vm.hash_rmaps
    other = found.word.copy()
    other[0] ^= (1 << 43) | (1 << 50)
    changed = replace(vm, hash_rmaps=replace(found, word=other))
    fewer = replace(
        vm,
        hash_rmaps=replace(
            *(found,),
            memslot=found.memslot[:-1],
            gfn=found.gfn[:-1],
            where=found.where[:-1],
            word=found.word[:-1],
            start=found.start[:-1],
        ),
    )
    targets = [
        made(name, replace(snapshot, vms=(one,)))
        for name, one in (("whole", vm), ("changed", changed), ("fewer", fewer))
    ]
    for target in targets:
        told("rmap", "rmap", target, "--json")
        lines("rmap-line", "rmap", target, "--jsonl")
    told("diff", "diff", targets[0], targets[1], "--json")
    told("diff", "diff", targets[0], targets[2], "--json")
    told("diff", "diff", targets[2], targets[0], "--json")


def test_expected(tmp_path: Path) -> None:
    wanted = str(DIRECTORY / "powernv9-stale.json")
    for capture in ("stale", "singles", "no-vms", "two-vms"):
        target = str(DIRECTORY / f"powernv9-{capture}.core.zst")
        told("expected", "diff", target, "--expected", wanted, "--json")
    other = json.loads(Path(wanted).read_text())
    (vm,) = other["expected"]["vms"]
    vm["leaves"][0] = "4095:0x10000"
    vm["slots"].popitem()
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(other))
    target = str(DIRECTORY / "powernv9-stale.core.zst")
    told("expected", "diff", target, "--expected", str(changed), "--json")


@pytest.mark.parametrize("hashed", [(), ("--hash",)])
def test_decode(hashed: tuple[str, ...]) -> None:
    given = ("0x0", "0x1", "0x0010000000005001", "0xffffffffffffffff", "0xc000000000001000")
    told("decode", "decode", *given, "0x0000080100000001", *hashed, "--json")


@pytest.mark.slow
@pytest.mark.parametrize("target", [str(SMALL), "/nowhere", "gdb:127.0.0.1:1", __file__])
def test_doctor(target: str) -> None:
    told("doctor", "doctor", target, "--json")


def test_doctor_with_remarks() -> None:
    for name in ("hash", "no-nested", "no-vms"):
        told("doctor", "doctor", str(DIRECTORY / f"powernv9-{name}.core.zst"), "--json")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["capture", "layout", "report"])
def test_files_that_are_written(command: str, tmp_path: Path) -> None:
    output = tmp_path / "written"
    document = told(command, command, str(SMALL), "-o", str(output), "--json")
    assert document["file"] == str(output)
    if command != "layout":
        assert document["bytes"] == output.stat().st_size


def test_a_layout_where_other_kernels_were_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = DescribedKernel(opened(SMALL).profile, "a test", ("the kernel at 0x1000 is a guest's",))
    monkeypatch.setattr("inspector.cli.layout.describe_target", lambda target: known)
    told("layout", "layout", str(SMALL), "-o", str(tmp_path / "written"), "--json")


@pytest.mark.parametrize("verdict", ["consistent", "violations", "inconclusive"])
def test_reports_of_documents(verdict: str, tmp_path: Path) -> None:
    document = json.loads(printed("check", str(SMALL), "--json"))
    source = tmp_path / "check.json"
    source.write_text(json.dumps(document | {"verdict": verdict}))
    told("report", "report", str(source), "-o", str(tmp_path / "page.html"), "--json")


@pytest.mark.slow
def test_replay(tmp_path: Path) -> None:
    assert told("replay", "replay", str(RECORDING), str(RECORDED), "--json")["verdict"] == "same"
    index = first(INSERT, lambda row: len(row["slot"]) > 3)
    changed = list(rows())
    slot = list(changed[index]["slot"])
    slot[1] = flipped(slot[1])
    changed[index] = changed[index] | {"slot": slot}
    cut = max(i for i, row in enumerate(rows()) if row.get("f") == INSERT)
    outer = next(i for i, row in enumerate(rows()) if row.get("n") == rows()[cut]["in"])
    for name, kept in (("changed", changed), ("cut", list(rows()[:outer]))):
        recording = str(write(tmp_path / f"{name}.jsonl", kept))
        assert told("replay", "replay", recording, str(RECORDED), "--json")["verdict"] == "diverged"


@pytest.mark.parametrize("ended", ["calls", "time", "divergence", "interrupted"])
def test_trace(ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Print what a live machine could give; tests/live has one that does."""
    slot, sentence = (0x1000, None), "a sentence"
    divergence = (
        Divergence(
            number=4,
            function=INSERT,
            arguments=(1, 2),
            what="the slot",
            expected=sentence,
            found=slot,
            slot=0xC0,
            gfn=2,
        )
        if ended == "divergence"
        else Divergence(
            number=4,
            function=INSERT,
            arguments=(1, 2),
            what="the slot",
            expected=slot,
            found=sentence,
        )
    )
    found = Trace(
        snapshot=opened(SMALL).snapshot,
        read_path="GDB",
        calls=Counter({INSERT: 4}),
        returns=3,
        stops=8,
        elsewhere=1,
        seconds=0.5,
    )
    found.ended = ended
    found.divergence = None if ended == "calls" else divergence
    monkeypatch.setattr("inspector.cli.trace.trace", lambda *arguments: found)
    runner = CliRunner().invoke(cli, ["trace", "gdb:127.0.0.1:1", "--json"])
    SEEN.update(hold("trace", json.loads(runner.stdout)))
    RAN.add("trace")


def test_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print what a live machine could give; tests/live has one that does."""
    snapshot = opened(SMALL).snapshot
    sample = replace(sample_of(snapshot, snapshot), notes=("a VM is missing",))
    without = replace(sample, vms=sampled(snapshot, None, 0.0))
    lone = Snapshot(release="6.12", build_id="id", page_shift=12, vms=(snapshot_vm(NO_HOST_PAGE),))
    stale = replace(sample, vms=sampled(lone, None, 0.0))

    def watched(*arguments: object) -> Iterator[Any]:
        yield from (without, sample, stale)

    monkeypatch.setattr("inspector.cli.watch.watch", watched)
    lines("watch", "watch", "gdb:127.0.0.1:1", "--jsonl")


def test_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print what a replaying machine could give; tests/live has one that does."""
    place = CodePlace(0xC000_0000_0000_1000, INSERT, 4, "kvm_hv")
    word = Watched("the slot of gfn 0x20", 0xC008_0000_0000_0000, 0x1000, 1)
    writes = (
        Write(0, 100, place, Instruction(b"\0\1\2\3", "std r3,0(r4)"), 0, 1, (place, CodePlace(8))),
        Write(0, 90, CodePlace(8), None, 1, 0, ()),
    )
    found = History(
        acquired=opened(SMALL),
        words=(word,),
        writes=writes,
        total=2,
        elsewhere=1,
        since=0,
        until=200,
        end=200,
        seconds=1.25,
    )
    monkeypatch.setattr("inspector.cli.history.history", lambda *arguments: found)
    told("history", "history", "gdb:127.0.0.1:1", "--gfn", "0x20", "--json")


def test_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inspector.cli.resume.resumed", lambda host, port: "VM status: paused")
    told("resume", "resume", "gdb:127.0.0.1:1", "--json")


def test_every_command_that_prints_json_is_described() -> None:
    flags = {
        (name, option)
        for name in COMMANDS
        for parameter in cli.get_command(click.Context(cli), name).params  # type: ignore[union-attr]
        for option in parameter.opts
        if option in ("--json", "--jsonl")
    }
    known = {
        (words[1], option)
        for document in DOCUMENTS
        for words in [document.printed_by.strip("`").split()]
        for option in words
        if option in ("--json", "--jsonl")
    }
    assert flags == known


def test_every_name_of_a_document_in_the_sources_is_described() -> None:
    named = re.compile(r'"(inspector\.[a-z-]+/\d+)"')
    sources = Path(inspector.__file__).parent.rglob("*.py")
    found = {name for path in sources for name in named.findall(path.read_text())}
    files = {"inspector.recording/1"}
    assert found - files == {document.label for document in DOCUMENTS if document.has_schema}


@pytest.mark.slow  # it needs the tests over all captures
def test_everything_that_is_described_was_seen() -> None:
    """This is the last test of the module, because it needs what the others have seen."""
    every = {document.name for document in DOCUMENTS}
    if every != RAN:
        pytest.skip(f"needs all tests of this module; not run: {', '.join(sorted(every - RAN))}")
    never = {path for name in every for path in described(name)} - SEEN
    assert not never, "never seen: " + ", ".join(sorted(never))
