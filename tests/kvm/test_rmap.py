"""The parallel walk over all lists, compared with following them one by one."""

from __future__ import annotations

import random
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fixtures.synthetic import Kernel, build
from inspector import encoding
from inspector.errors import MemoryNotReadable
from inspector.kvm import rmap
from inspector.kvm.rmap import read_rmaps
from inspector.kvm.snapshot import Memslot, Rmaps
from inspector.memory.interface import Records
from inspector.memory.numbers import U64, addresses
from inspector.memory.reads import RecordingMemory
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import KernelSpace
from tests.kvm.slotwalk import SlotWord, walk

PAGE = 4096
PROFILES = {order: build([], byte_order=order).profile for order in "<>"}
NODES = 8
BAD_LINKS = (0x10, 0xC000_0000_0000_0004, 0xC008_0000_0000_0000, 0xC000_7000_0000_0000, 1 << 63)
LINKS = st.one_of(
    st.integers(0, NODES - 1),
    st.integers(0, NODES - 1),
    st.sampled_from((0, 1, 0x0010_0000_0000_1001, *BAD_LINKS)).map(lambda word: -1 - word),
)
"""A link: the number of a node, or a word that is none, below zero."""


@dataclass
class Array:
    """An rmap array with nodes that have arbitrary links, and its memslot."""

    kernel: KernelSpace
    memslot: Memslot
    heads: dict[int, int]
    nodes: dict[int, tuple[int, int]]

    @classmethod
    def of(
        cls, heads: dict[int, int], nodes: list[tuple[int, int]], order: str = "<", skip: int = 0
    ) -> Array:
        kernel = Kernel(PAGE, order)
        base = kernel.kmalloc(16 * NODES)

        def word(link: int) -> int:
            return base + 16 * link if link >= 0 else -1 - link

        made = {base + 16 * i: (word(link), value) for i, (link, value) in enumerate(nodes)}
        for node, (link, value) in made.items():
            kernel.put("rmap_nested", node, list__next=link, rmap=value)
        npages = max(heads, default=0) + 1
        area = kernel.vmalloc(8 * (skip + npages))
        where = area.base + 8 * skip
        for gfn, link in heads.items():
            place = addresses([where + 8 * gfn])
            kernel.words(area.physical(place), addresses([word(link)]), order)
        own = {**PROFILES[order].symbols, "swapper_pg_dir": kernel.own_table()}
        profile = type(PROFILES[order])(**{**vars(PROFILES[order]), "symbols": own})
        memslot = Memslot(0xC000_0000_0000_1000, 0, 0x100, npages, 0, 0, where)
        opened = KernelSpace(kernel.memory(), profile)
        return cls(opened, memslot, {gfn: word(link) for gfn, link in heads.items()}, made)

    def read(self) -> Rmaps:
        return read_rmaps(self.kernel, (self.memslot,))

    def followed(self, head: int) -> tuple[list[SlotWord], str | None]:
        """Follow one slot by its links; return the steps, and the reason if it ended too early."""
        last = head

        def node_at(address: int) -> tuple[int, int]:
            nonlocal last
            if not 0xC000_0000_0000_0000 <= address < 0xC008_0000_0000_0000 or address % 8:
                raise ValueError("pointer")
            if address not in self.nodes:
                raise MemoryNotReadable(address, 16)
            last = self.nodes[address][0]
            return self.nodes[address]

        steps: list[SlotWord] = []
        try:
            for step in walk(head, node_at):
                steps.append(step)
        except ValueError:
            return steps, "pointer"
        except MemoryNotReadable:
            return steps, "unreadable"
        if encoding.is_single(last):
            return steps, None
        return steps, "cycle" if last else "end"


@pytest.mark.slow
@given(
    st.dictionaries(st.integers(0, 40), LINKS, max_size=8),
    st.lists(st.tuples(LINKS, st.integers(0, (1 << 64) - 1)), min_size=NODES, max_size=NODES),
    st.sampled_from("<>"),
    st.integers(0, 600),
    st.sampled_from((0, 1, 3, rmap.LONG)),
)
@example({0: 0}, [(i + 1, 0) for i in range(NODES - 1)] + [(3, 0)], "<", 0, 2)
@example({0: 0, 1: 4}, [(i + 1, i) for i in range(NODES - 1)] + [(-2, 0)], ">", 511, 0)
def test_every_slot_is_followed_as_one_by_one(
    heads: dict[int, int], nodes: list[tuple[int, int]], order: str, skip: int, guessed: int
) -> None:
    array = Array.of(heads, nodes, order, skip)
    with mock.patch.object(rmap, "LONG", guessed):
        found = array.read()
    wanted = {gfn: head for gfn, head in sorted(array.heads.items()) if head}
    assert found.gfn.tolist() == [0x100 + gfn for gfn in wanted]
    assert found.where.tolist() == [array.memslot.rmap + 8 * gfn for gfn in wanted]
    assert found.head.tolist() == list(wanted.values())
    problems = {problem.slot: problem for problem in found.problems}
    assert len(problems) == len(found.problems)
    for i, (gfn, head) in enumerate(wanted.items()):
        steps, ending = array.followed(head)
        assert list(zip(found[i].nodes.tolist(), found[i].words.tolist(), strict=True)) == steps
        if ending is None:
            assert i not in problems
            continue
        problem = problems[i]
        assert problem.kind == ending
        assert array.kernel.pointer(problem.place) == problem.link
        assert (problem.place == array.memslot.rmap + 8 * gfn) == (not steps)


class _OtherPages:
    """A memory whose pages have changed by the time its nodes are read."""

    name = "physical"

    def __init__(self, memory: SegmentedMemory, changed: random.Random) -> None:
        self._memory = memory
        self._changed = changed
        self.ram = memory.ram

    def read(self, address: int, length: int) -> bytes:
        words = np.frombuffer(self._memory.read(address, length), dtype="<u8").copy()
        if length == rmap.PAGE:
            for _ in range(3):
                words[self._changed.randrange(words.size)] = words[
                    self._changed.randrange(words.size)
                ]
        return words.tobytes()

    def read_many(self, where: U64, length: int) -> Records:
        return self._memory.read_many(where, length)


@pytest.mark.parametrize("changing", [False, True])
def test_a_long_list_is_read_in_order(changing: bool) -> None:
    kernel = Kernel(PAGE, "<")
    count = 3000
    base = kernel.kmalloc(64 * count)
    order = np.random.default_rng(1).permutation(count).astype(np.uint64)
    node = addresses(base) + order * np.uint64(64)
    link = np.append(node[1:], np.uint64(1))
    physical = kernel.physical(node)
    kernel.words(physical, link, "<")
    word = np.arange(count, dtype=np.uint64) * np.uint64(4096)
    kernel.words(physical + np.uint64(8), word, "<")
    head = kernel.kmalloc(8)
    kernel.store(head, int(node[0]))
    memory = kernel.memory()
    recorder = RecordingMemory(_OtherPages(memory, random.Random(1)) if changing else memory)
    opened = KernelSpace(recorder, PROFILES["<"])
    found = read_rmaps(opened, (Memslot(0, 0, 0, 1, 0, 0, head),))
    assert recorder.ranges().total <= 16 * count + PAGE, "what was guessed from is recorded"
    assert found.length.tolist() == [count + 1]
    assert found[0].words.tolist() == [*word.tolist(), 1]
    assert found[0].nodes.tolist() == [*node.tolist(), 0]


def test_a_list_is_followed_so_far_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the list is not known, as if it could not be read."""
    nodes = [(i + 1, i) for i in range(NODES - 1)] + [(-1 - 0x0010_0000_0000_1001, 7)]
    array = Array.of({3: 0}, nodes)
    whole = array.read()
    assert (whole.word.size, whole.problems) == (NODES + 1, ())
    monkeypatch.setattr(rmap, "LIST_LIMIT", 4)
    cut = array.read()
    assert cut.word.tolist() == whole.word.tolist()[:4]
    (problem,) = cut.problems
    assert (problem.missing, problem.link) == (True, int(whole.node[4]))
    assert "no further" in problem.why


@pytest.mark.parametrize("limit", [PAGE, 3 * PAGE])
def test_arrays_are_read_in_pieces(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rmap, "READ_LIMIT", limit)
    heads = {gfn: -1 - (0x1001 | (gfn << 12)) for gfn in (0, 511, 512, 513, 2047, 2048, 4000)}
    array = Array.of(heads, [], skip=1)
    assert [(slot.gfn, slot.words.tolist()) for slot in array.read()] == [
        (0x100 + gfn, [0x1001 | (gfn << 12)]) for gfn in heads
    ]


def test_neighbours_of_an_array_are_not_its_slots() -> None:
    array = Array.of({0: -2, 4: -2, 5: -2, 9: -2}, [])
    part = Memslot(0, 0, 0, 3, 0, 0, array.memslot.rmap + 8 * 3)
    assert read_rmaps(array.kernel, (part,)).gfn.tolist() == [1, 2]


def test_unreadable_pages_are_told_by_gfn() -> None:
    array = Array.of({0: -2, 2000: -2}, [], skip=3)
    beyond = Memslot(0, 0, 0x100, 4 * 512, 0, 0, array.memslot.rmap)
    found = read_rmaps(array.kernel, (beyond,))
    assert found.unread == ((0x100 + 4 * 512 - 3, 3),)
    assert found.gfn.tolist() == [0x100, 0x100 + 2000]


def test_unreadable_pages_in_a_row_are_one_gap() -> None:
    array = Array.of({0: -2}, [])
    beyond = Memslot(0, 0, 0x100, 6 * 512, 0, 0, array.memslot.rmap)
    assert read_rmaps(array.kernel, (beyond,)).unread == ((0x100 + 512, 5 * 512),)


@pytest.mark.parametrize("rmap_array", [0xC008_7000_0000_0000, 0xC000_7000_0000_0000])
def test_an_array_of_any_size_that_is_not_there(rmap_array: int) -> None:
    """The largest possible memslot costs no more than the limit, and the next one is still read."""
    array = Array.of({0: -2}, [])
    pages = (1 << 31) - 1
    absurd = Memslot(0, 0, 1 << 32, pages, 0, 0, rmap_array)
    memory = array.kernel.memory
    assert isinstance(memory, SegmentedMemory)
    record = Counting(memory)
    found = read_rmaps(KernelSpace(record, array.kernel.profile), (absurd, array.memslot))
    assert found.unread == ((1 << 32, pages),)
    assert found.gfn.tolist() == [array.memslot.base_gfn]
    assert record.asked <= rmap.MISSING_LIMIT // PAGE + 3 * rmap.READ_LIMIT // PAGE


def test_what_lies_behind_a_hole_is_read() -> None:
    """A hole of one batch does not end the array."""
    batch = 16 * PAGE // 8
    array = Array.of({2 * batch: -2}, [])
    with mock.patch.object(rmap, "READ_LIMIT", 16 * PAGE):
        before = Memslot(0, 0, 0, 3 * batch + 1, 0, 0, array.memslot.rmap - 16 * PAGE)
        found = read_rmaps(array.kernel, (before,))
    assert found.gfn.tolist() == [3 * batch]
    assert found.unread == ((0, batch),)


class Counting(RecordingMemory):
    """Counts the records that are requested."""

    asked = 0

    def read_many(self, where: U64, length: int) -> Records:
        self.asked += where.size
        return super().read_many(where, length)


def test_no_memslot_and_no_array_are_no_slots() -> None:
    array = Array.of({}, [])
    assert len(read_rmaps(array.kernel, ())) == 0
    assert len(read_rmaps(array.kernel, (Memslot(0, 0, 0, 9, 0, 0, 0),))) == 0
    assert len(array.read()) == 0
