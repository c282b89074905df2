"""A hash guest's rmap words, and their rings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import Kernel, build
from inspector import hash_encoding
from inspector.checks.verdict import Verdict, judge
from inspector.cli import cli
from inspector.hash_encoding import HashWord
from inspector.image.profile import Profile, StructLayout
from inspector.kvm.hash_rmap import read_hash_rmaps
from inspector.kvm.snapshot import Gap, HashRmaps, Memslot, Part, Snapshot
from inspector.model.vm import VmState
from inspector.reports.text import hash_problems, rmap_report
from inspector.structures.space import KernelSpace
from tests.builders import snapshot_vm
from tests.fixtures import DIRECTORY, description, opened

PAGE = 4096
ORDER = 18
ENTRIES = 1 << (ORDER - 4)
FORW, BACK, SIZE = 8, 12, 16
REV, HPT_ORDER = 600, 608
BASE_GFN = 0x100
CAPTURE = DIRECTORY / "powernv9-hash.core.zst"
OTHER = DIRECTORY / "powernv9-mixed.core.zst"


def with_hpt(profile: Profile) -> Profile:
    """Return a profile that has the layout of a hash guest's links."""
    kvm = profile.structs["kvm"]
    members = {**kvm.members, "arch.hpt.rev": (REV, 8), "arch.hpt.order": (HPT_ORDER, 4)}
    links = StructLayout("revmap_entry", SIZE, {"forw": (FORW, 4), "back": (BACK, 4)})
    structs = {
        **profile.structs,
        "kvm": replace(kvm, members=members),
        "revmap_entry": links,
    }
    return replace(profile, structs=structs)


PROFILES = {order: build([], byte_order=order).profile for order in "<>"}


class Guest:
    """A hash guest with one memslot, under construction."""

    def __init__(self, order: str = "<", hpt_order: int = ORDER, npages: int = 64) -> None:
        self._kernel = Kernel(PAGE, order)
        self._vm = self._kernel.kmalloc(1024)
        self.rev = self._kernel.vmalloc(SIZE * ENTRIES).base
        self.array = self._kernel.vmalloc(8 * npages).base
        self._kernel.store(self._vm + REV, self.rev)
        self._kernel.store(self._vm + HPT_ORDER, hpt_order, 4)
        self._memslot = Memslot(0xC000_0000_0000_1000, 0, BASE_GFN, npages, 0, 0, self.array)
        self._profile = PROFILES[order]
        self.gaps: list[Gap] = []

    def word(self, page: int, word: int) -> None:
        self._kernel.store(self.array + 8 * page, word)

    def link(self, index: int, forw: int, back: int) -> None:
        self._kernel.store(self.rev + SIZE * index + FORW, forw, 4)
        self._kernel.store(self.rev + SIZE * index + BACK, back, 4)

    def ring(self, page: int, indices: Sequence[int]) -> None:
        self.word(page, hash_encoding.encode(HashWord(indices[0] if indices else None)))
        for i, index in enumerate(indices):
            self.link(index, indices[(i + 1) % len(indices)], indices[i - 1])

    def read(self, *, know_links: bool = True) -> HashRmaps:
        symbols = {**self._profile.symbols, "swapper_pg_dir": self._kernel.own_table()}
        profile = replace(self._profile, symbols=symbols)
        kernel = KernelSpace(self._kernel.memory(), with_hpt(profile) if know_links else profile)
        return read_hash_rmaps(kernel, self._vm, (self._memslot,), self.gaps)


def rings(found: HashRmaps) -> dict[int, list[int]]:
    return {slot.gfn - BASE_GFN: slot.indices.tolist() for slot in found}


@st.composite
def some_rings(draw: st.DrawFn) -> dict[int, list[int]]:
    """Return disjoint rings of random entries for random pages; some have no entry."""
    lengths = draw(st.dictionaries(st.integers(0, 63), st.integers(0, 6), max_size=8))
    entries = draw(
        st.lists(
            st.integers(0, ENTRIES - 1),
            min_size=sum(lengths.values()),
            max_size=sum(lengths.values()),
            unique=True,
        )
    )
    return {page: [entries.pop() for _ in range(length)] for page, length in lengths.items()}


@pytest.mark.slow
@given(some_rings(), st.sampled_from("<>"))
def test_every_ring_is_followed_forward_from_its_head(
    wanted: Mapping[int, list[int]], order: str
) -> None:
    guest = Guest(order)
    for page, indices in wanted.items():
        guest.ring(page, indices)
    found = guest.read()
    assert rings(found) == wanted
    assert found.followed
    assert found.problems == ()
    assert guest.gaps == []
    for slot in found:
        assert slot.where == guest.array + 8 * (slot.gfn - BASE_GFN)
        head = next(iter(wanted[slot.gfn - BASE_GFN]), None)
        assert hash_encoding.decode(slot.word).index == head


@pytest.mark.slow
@given(
    st.dictionaries(st.integers(0, 9), st.integers(0, 12), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=12, max_size=12),
)
def test_rings_of_any_links_end(heads: dict[int, int], links: list[tuple[int, int]]) -> None:
    outside = 0xFFFF_FFF0

    def index(number: int) -> int:
        return outside if number == 12 else 7 * number

    guest = Guest()
    for page, head in heads.items():
        guest.word(page, hash_encoding.encode(HashWord(index(head))))
    for number, (forw, back) in enumerate(links):
        guest.link(7 * number, index(forw), index(back))
    found = guest.read()
    broken = {problem.slot for problem in found.problems}
    for i, slot in enumerate(found):
        met = slot.indices.tolist()
        assert len(set(met)) == len(met)
        closed = bool(met) and all(
            links[here // 7] == (index_number(following), index_number(before))
            for before, here, following in zip(
                [met[-1], *met[:-1]], met, [*met[1:], met[0]], strict=True
            )
        )
        assert closed == (i not in broken)
        assert bool(hash_problems(slot)) == (i in broken)


def index_number(index: int) -> int:
    return 12 if index > ENTRIES else index // 7


def test_a_ring_says_where_it_is_broken() -> None:
    guest = Guest()
    guest.ring(0, [5, 9, 7])
    guest.link(9, 7, 3)
    guest.word(1, hash_encoding.encode(HashWord(ENTRIES)))
    first, second = guest.read()
    (problem,) = first.problems
    assert (problem.kind, problem.index, problem.place) == ("back", 3, guest.rev + SIZE * 9 + BACK)
    assert first.indices.tolist() == [5]
    (problem,) = second.problems
    assert (problem.kind, problem.index, problem.place) == ("range", ENTRIES, guest.array + 8)
    assert second.indices.tolist() == []


def test_links_that_are_not_there_break_the_ring() -> None:
    guest = Guest(hpt_order=ORDER + 6)
    guest.ring(0, [ENTRIES - 1])
    guest.word(1, hash_encoding.encode(HashWord(ENTRIES << 5)))
    found = guest.read()
    assert rings(found) == {0: [ENTRIES - 1], 1: []}
    assert [problem.kind for problem in found.problems] == ["unreadable"]


@pytest.mark.parametrize("order", [0, 17, 47, 0xFFFF_FFFF])
def test_an_impossible_table_is_not_followed(order: int) -> None:
    guest = Guest(hpt_order=order)
    guest.ring(0, [5, 9])
    found = guest.read()
    assert rings(found) == {0: [5]}
    assert not found.followed
    (gap,) = guest.gaps
    assert "not followed" in gap.text
    assert gap.part is Part.RINGS


def test_an_older_layout_shows_the_words() -> None:
    guest = Guest()
    guest.ring(0, [5, 9])
    guest.ring(1, [])
    found = guest.read(know_links=False)
    assert rings(found) == {0: [5], 1: []}
    assert not found.followed
    assert len(guest.gaps) == 1


def test_words_without_entries_need_no_links() -> None:
    guest = Guest(hpt_order=0)
    guest.ring(3, [])
    assert rings(guest.read()) == {3: []}
    assert guest.gaps == []


def report(found: HashRmaps, *, everything: bool = False) -> str:
    vm = replace(snapshot_vm(VmState(12)), radix=False, hash_rmaps=found)
    return "\n".join(
        rmap_report(
            Snapshot(release="", build_id="", page_shift=12, vms=(vm,)), everything=everything
        )
    )


def test_the_report_names_what_a_word_says() -> None:
    guest = Guest()
    guest.word(0, hash_encoding.encode(HashWord(None, True, True, True)))
    guest.ring(1, list(range(30)))
    guest.word(2, 1 << 60)
    found = guest.read()
    text = report(found)
    assert "hash MMU, 3 slots, 30 HPT entries" in text
    assert "gfn 0x100  no HPT entry, referenced, changed, locked" in text
    assert "gfn 0x101  ring of 30" in text
    assert "18 more (--all shows them)" in text
    assert "the type is 0x10" in text
    assert "0x1d" not in text
    assert "0x1d" in report(found, everything=True)


def test_a_hash_guest_is_never_judged() -> None:
    vm = replace(
        snapshot_vm(VmState(12)), radix=False, locked=True, mmu_lock=1, gaps=(Gap("a ring"),)
    )
    (judgement,) = judge(Snapshot(release="", build_id="", page_shift=12, vms=(vm,))).vms
    assert judgement.verdict is Verdict.CONSISTENT
    assert judgement.findings == ()


def expected() -> dict[str, dict[str, object]]:
    (vm,) = description(CAPTURE)["expected"]["vms"]
    slots: dict[str, dict[str, object]] = vm["hash_slots"]
    return slots


def test_the_capture_holds_the_words_that_were_made() -> None:
    (vm,) = opened(CAPTURE).snapshot.vms
    assert not vm.radix
    assert vm.gaps == ()
    assert {
        f"{slot.gfn:#x}": {
            "word": f"{slot.word:#x}",
            "indices": [f"{index:#x}" for index in slot.indices.tolist()],
        }
        for slot in vm.hash_rmaps
    } == expected()
    assert all(not hash_problems(slot) for slot in vm.hash_rmaps)
    lengths = {slot.indices.size for slot in vm.hash_rmaps}
    assert {0, 1, 2, 3, 5} <= lengths


def test_a_radix_guest_has_none() -> None:
    assert all(len(vm.hash_rmaps) == 0 for vm in opened(OTHER).snapshot.vms)


def run(*arguments: str, path: Path = CAPTURE) -> str:
    done = CliRunner().invoke(cli, [arguments[0], str(path), *arguments[1:]])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_lines_for_programs_keep_their_keys() -> None:
    rows = [json.loads(line) for line in run("rmap", "--jsonl").splitlines()]
    assert {row["gfn"]: row["words"] for row in rows} == {
        gfn: [slot["word"]] for gfn, slot in expected().items()
    }
    for row in rows:
        assert row.keys() == {"vm_lpid", "memslot", "base_gfn", "gfn", "words", "hash"}
        assert row["hash"]["indices"] == expected()[row["gfn"]]["indices"]
        assert row["hash"]["present"] == bool(row["hash"]["indices"])
        assert row["hash"]["followed"]
        assert row["hash"]["problems"] == []
    assert json.loads(run("rmap", "--json"))["slots"] == rows
    others = [json.loads(line) for line in run("rmap", "--jsonl", path=OTHER).splitlines()]
    assert all("hash" not in row for row in others)


def test_every_command_says_that_it_is_a_hash_guest() -> None:
    count = len(expected())
    assert f"hash MMU, {count} slots" in run("rmap")
    assert f"hash-MMU guest: its {count} rmap words" in run("check")
    assert json.loads(run("vms", "--json"))["vms"][0]["mmu"] == "hash"
