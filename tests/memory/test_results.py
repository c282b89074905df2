"""Parts that are used again are equal to parts that are made anew."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.mutations.mutant import Mutant
from inspector.kvm.collect import collect, vm_list
from inspector.memory.numbers import addresses
from inspector.memory.reads import Piece, RecordingMemory
from inspector.memory.results import Making, Results, anew
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import KernelSpace
from tests.alike import assert_alike
from tests.fixtures import DIRECTORY
from tests.memories import of_segments
from tests.profiles import examples

WORDS = 24
BASE = 0x1000

Content = list[int]


def memory_of(content: Content) -> SegmentedMemory:
    return of_segments([(BASE, np.array(content, dtype=np.uint64).tobytes())])


def total(memory: RecordingMemory, making: Making, begin: int, depth: int) -> int:
    """Add up words, each of which says which part comes next."""
    word = int.from_bytes(memory.read(BASE + 8 * begin, 8), "little")
    if not depth:
        return word
    following = (word % WORDS, (word + 7) % WORDS)
    return word + sum(
        making((place, depth), partial(total, memory, making, place, depth - 1))
        for place in following
    )


contents = st.lists(st.integers(0, 63), min_size=WORDS, max_size=WORDS)


@pytest.mark.slow
@given(contents, st.lists(st.tuples(st.integers(0, WORDS - 1), st.integers(0, 63)), max_size=12))
def test_parts_are_what_they_would_be_anew(content: Content, steps: list[tuple[int, int]]) -> None:
    results = None
    changed = addresses([])
    for place, value in [(0, content[0]), *steps]:
        changed = addresses([BASE + 8 * place] if content[place] != value else [])
        content[place] = value
        fresh, record = RecordingMemory(memory_of(content)), RecordingMemory(memory_of(content))
        results = Results(record, results, changed)
        assert total(record, results, 0, 3) == total(fresh, anew, 0, 3)
        one, other = record.freeze(), fresh.freeze()
        assert (one.starts.tolist(), one.sizes.tolist()) == (
            other.starts.tolist(),
            other.sizes.tolist(),
        )
        for start, size in zip(one.starts.tolist(), one.sizes.tolist(), strict=True):
            assert one.read(start, size) == other.read(start, size)


def test_what_has_not_changed_is_not_read() -> None:
    content = [0] * WORDS
    first = RecordingMemory(memory_of(content))
    before = Results(first)
    assert before("sum", lambda: total(first, before, 0, 2)) == 0
    nothing = RecordingMemory(of_segments([]))
    again = Results(nothing, before, addresses([BASE + 8 * 20]))
    assert again("sum", lambda: pytest.fail("it is made again")) == 0
    assert nothing.freeze().read(BASE, 8) == bytes(8)


def test_a_record_that_begins_inside_a_word_has_changed_with_it() -> None:
    content = of_segments([(BASE, bytes(64))])
    first = RecordingMemory(content)
    before = Results(first)
    before("end", lambda: first.read(BASE + 13, 2))
    for word, made in ((BASE, 0), (BASE + 8, 1), (BASE + 16, 0)):
        calls: list[int] = []
        Results(RecordingMemory(content), before, addresses([word]))(
            "end", partial(calls.append, 1)
        )
        assert len(calls) == made, hex(word)


def test_what_fails_is_not_kept() -> None:
    record = RecordingMemory(of_segments([]))
    before = Results(record)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            before("none", lambda: 1 // 0)
    assert before("none", lambda: 1) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["powernv9-two-vms", "powernv9-singles", "powernv9-stale-5.10-64k", "powernv9-hash"]
)
def test_snapshots_of_a_kernel_that_changes(name: str) -> None:
    mutant = Mutant(DIRECTORY / f"{name}.core.zst")
    profile = mutant.profile
    chance = random.Random(name)
    record = RecordingMemory(mutant.memory)
    vms = vm_list(KernelSpace(record, profile))
    results = Results(record)
    collect(KernelSpace(record, profile), vms, results)
    pieces = record.since(0)
    there: list[int] = []
    for _ in range(examples(25)):
        if chance.random() < 0.3:
            mutant.undo()
            changed, there = there, []
        else:
            place = _place(pieces, chance)
            old = mutant.memory.read(place, 8)
            flipped = old[:7] + bytes([old[7] ^ (1 << chance.randrange(8))])
            mutant.put(place, chance.choice((bytes(8), flipped)))
            changed = [place]
            there.append(place)
        record = RecordingMemory(mutant.memory)
        results = Results(record, results, addresses(sorted(set(changed))))
        snapshot = collect(KernelSpace(record, profile), vms, results)
        assert_alike(snapshot, collect(KernelSpace(mutant.memory, profile), vms))


def _place(pieces: tuple[Piece, ...], chance: random.Random) -> int:
    """Return the address of a whole word that was read."""
    while True:
        where, data = chance.choice(pieces)
        row = chance.randrange(len(where))
        words = data.shape[1] // 8
        if words and int(where[row]) % 8 == 0:
            return int(where[row]) + 8 * chance.randrange(words)
