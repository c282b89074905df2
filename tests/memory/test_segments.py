"""Segments of a buffer, compared with a dictionary of bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import MemoryNotReadable
from inspector.memory.contents import GATHER_LIMIT
from inspector.memory.interface import read_one
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges
from inspector.memory.reads import Piece, RecordingMemory
from inspector.memory.segments import SegmentedMemory
from tests.memories import of_segments

SPAN = 96
HIGH = 1 << 60
BASES = st.sampled_from((0, HIGH))
SEGMENTS = st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=16)), max_size=6)
READS = st.tuples(st.integers(0, SPAN), st.integers(0, 24))


def oracle(segments: list[tuple[int, bytes]]) -> dict[int, int]:
    """Return every byte by its address; where segments overlap, the one that starts first wins."""
    content: dict[int, int] = {}
    for start, data in sorted(segments, key=lambda segment: segment[0]):
        for i, value in enumerate(data):
            content.setdefault(start + i, value)
    return content


def expected(content: dict[int, int], address: int, length: int) -> bytes | None:
    """Return the bytes at an address, None if one is missing."""
    found = [content.get(address + i) for i in range(length)]
    return None if None in found else bytes(value for value in found if value is not None)


def read(memory: SegmentedMemory | RecordingMemory, address: int, length: int) -> bytes | None:
    try:
        return memory.read(address, length)
    except MemoryNotReadable:
        return None


@given(BASES, SEGMENTS, st.lists(READS, max_size=20))
def test_every_read(
    base: int, segments: list[tuple[int, bytes]], reads: list[tuple[int, int]]
) -> None:
    segments = [(base + start, data) for start, data in segments]
    memory, content = of_segments(segments), oracle(segments)
    for start, length in reads:
        assert read(memory, base + start, length) == expected(content, base + start, length)
    for length in (1, 7, 8, 16):
        where = addresses([base + start for start, _ in reads])
        data, present = memory.read_many(where, length)
        for row, address in enumerate(where.tolist()):
            wanted = expected(content, address, length)
            assert bool(present[row]) == (wanted is not None)
            assert data[row].tobytes() == (wanted or bytes(length))


@given(BASES, SEGMENTS, st.lists(st.tuples(READS, st.booleans()), max_size=20))
def test_a_recording_holds_what_was_read_and_nothing_else(
    base: int, segments: list[tuple[int, bytes]], reads: list[tuple[tuple[int, int], bool]]
) -> None:
    segments = [(base + start, data) for start, data in segments]
    content = oracle(segments)
    recorder = RecordingMemory(of_segments(segments))
    kept: dict[int, int] = {}
    for (start, length), many in reads:
        address = base + start
        if many:
            where = addresses([address, address + 3, address])
            records = recorder.read_many(where, length)
            rows = [int(a) for a, p in zip(where, records.present, strict=True) if p]
        else:
            rows = [address] if read(recorder, address, length) is not None else []
        for row in rows:
            kept |= {row + i: content[row + i] for i in range(length)}
    frozen = recorder.freeze()
    assert frozen.sizes.sum() == len(kept)
    for address in range(base, base + SPAN + 32):
        assert read(frozen, address, 1) == expected(kept, address, 1)
    assert list(frozen.starts) == sorted(frozen.starts)
    assert np.all(frozen.starts[1:] > frozen.starts[:-1] + frozen.sizes[:-1]), "not merged"


@given(st.data())
def test_departures_from_a_copy(data: st.DataObject) -> None:
    """Records of any length, some read twice, of a memory that changes."""
    content = bytearray(range(256)) * 16
    ranges = Ranges(addresses([0x1000, 0x3000]), addresses([2048, 2048]))
    memory = of_segments([(0x1000, bytes(content[:2048])), (0x3000, bytes(content[2048:]))])
    record = RecordingMemory(memory)
    read: dict[int, list[int]] = {}
    lengths = st.sampled_from([1, 8, 24, 1024])
    for length in data.draw(st.lists(lengths, max_size=4)):
        places = data.draw(st.lists(st.integers(0, 4096 - 1), max_size=3))
        inside = [p for p in places if p % 2048 + length <= 2048]
        physical = [0x1000 + p if p < 2048 else 0x2800 + p for p in inside]
        record.read_many(addresses(physical), length)
        for begin in physical:
            for address in range(begin, begin + length):
                read.setdefault(address & ~7, []).append(address)
    changed = data.draw(st.sets(st.integers(0, 4095), max_size=6))
    for place in changed:
        content[place] ^= 1
    differing = {0x1000 + p if p < 2048 else 0x2800 + p for p in changed}
    expected = sorted(word for word, there in read.items() if differing & set(there))
    copy = np.frombuffer(bytes(content), dtype=np.uint8)
    assert record.departures(copy, ranges).tolist() == expected


def test_what_was_read_twice_and_has_changed_in_between_departs() -> None:
    first, second = (of_segments([(0x1000, bytes([value] * 8))]) for value in (1, 2))
    record = RecordingMemory(first)
    record.read(0x1000, 8)
    record.add([Piece(addresses([0x1000]), second.read_many(addresses([0x1000]), 8).data)])
    ranges = Ranges(addresses([0x1000]), addresses([8]))
    for value in (1, 2):
        copy = np.full(8, value, dtype=np.uint8)
        assert record.departures(copy, ranges).tolist() == [0x1000]


def test_large_records_are_read_too() -> None:
    data = np.random.default_rng(1).bytes(5 * GATHER_LIMIT)
    memory = of_segments([(0x10000, data)])
    size = 2 * GATHER_LIMIT
    found, present = memory.read_many(addresses([0x10000, 0x10010, 0x10000 + len(data)]), size)
    assert present.tolist() == [True, True, False]
    assert found[0].tobytes() == data[:size]
    assert found[1].tobytes() == data[16 : 16 + size]


def test_an_error_says_where() -> None:
    with pytest.raises(MemoryNotReadable, match="8 bytes at physical address 0x1234"):
        of_segments([(0, bytes(16))]).read(0x1234, 8)
    with pytest.raises(MemoryNotReadable) as caught:
        read_one(of_segments([]), 0x10, 4)
    assert (caught.value.address, caught.value.length, caught.value.space) == (0x10, 4, "physical")


@pytest.mark.parametrize("address", [-8, (1 << 64) - 4, 1 << 64, 1 << 70])
def test_addresses_that_cannot_be_are_not_readable(address: int) -> None:
    memory = of_segments([(0, bytes(64)), ((1 << 64) - 64, bytes(60))])
    assert read(memory, address, 8) is None


def test_words_are_taken_in_the_given_order() -> None:
    records = of_segments([(0, bytes(range(16)))]).read_many(addresses([0]), 16)
    assert records.words("<").tolist() == [[0x0706050403020100, 0x0F0E0D0C0B0A0908]]
    assert records.words(">").tolist() == [[0x0001020304050607, 0x08090A0B0C0D0E0F]]
