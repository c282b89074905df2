"""ELF cores: a core that is written is read again, and a damaged one is reported."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps.elfcore import Note, open_core, write_core
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.interface import CUT_OFF
from inspector.memory.numbers import addresses
from inspector.memory.segments import SegmentedMemory
from tests.memories import of_segments, pieces_of
from tests.profiles import examples

NOTES = (Note("VMCOREINFO", 0, b"OSRELEASE=1\n"), Note("INSPECTOR", 7, b"{}"), Note("X", 1, b""))
HEADER = 64


def core(order: str = "<") -> bytes:
    memory = of_segments([(0x1000, b"one" * 11), (0x8000_0000, b"two")])
    return write_core(memory, NOTES, order)


def saved(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "core"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
def test_round_trip(tmp_path: Path, order: str, packed: bool) -> None:
    data = core(order)
    found = open_core(saved(tmp_path, zstandard.compress(data) if packed else data))
    assert found.notes == NOTES
    assert found.note("INSPECTOR") == b"{}"
    assert found.note("nobody") is None
    assert pieces_of(found.memory) == [(0x1000, b"one" * 11), (0x8000_0000, b"two")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 1 << 50), st.binary(max_size=40)), max_size=8),
    st.sampled_from("<>"),
)
def test_any_memory_comes_back(
    tmp_path: Path, segments: list[tuple[int, bytes]], order: str
) -> None:
    memory = of_segments(segments)
    found = open_core(saved(tmp_path, write_core(memory, (), order)))
    assert pieces_of(found.memory) == pieces_of(memory)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [0xFFFD, 0xFFFE, 0xFFFF, 70_000])
def test_more_segments_than_a_header_can_count(tmp_path: Path, segments: int) -> None:
    starts = addresses(np.arange(segments) * 16)
    memory = SegmentedMemory(
        np.arange(8 * segments, dtype=np.uint64).view(np.uint8)[: 8 * segments],
        starts,
        np.full(segments, 8, np.uint64),
        addresses(np.arange(segments) * 8),
    )
    data = write_core(memory, NOTES, "<")
    (phnum,) = struct.unpack_from("<H", data, 56)
    assert phnum == min(segments + 1, 0xFFFF)
    found = open_core(saved(tmp_path, data))
    assert found.memory.starts.size == segments
    assert found.notes == NOTES
    words = found.memory.read_many(starts, 8).words("<").reshape(-1)
    assert words.tolist() == list(range(segments))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["<", ">"])
def test_of_a_core_that_is_cut_off_the_rest_is_read(tmp_path: Path, order: str) -> None:
    data = core(order)
    whole = {
        start + i: value
        for start, piece in pieces_of(open_core(saved(tmp_path, data)).memory)
        for i, value in enumerate(piece)
    }
    known = set()
    for length in range(len(data)):
        try:
            found = open_core(saved(tmp_path, data[:length]))
        except BadData:
            continue
        assert "is cut off" in found.cut
        read = 0
        for address, value in whole.items():
            if found.memory.has(address):
                assert found.memory.read(address, 1) == bytes([value])
                read += 1
                continue
            with pytest.raises(MemoryNotReadable, match=CUT_OFF):
                found.memory.read(address, 1)
        known.add(read)
    assert known == set(range(len(whole)))


def test_every_truncation_of_a_compressed_core_is_noticed(tmp_path: Path) -> None:
    data = zstandard.ZstdCompressor(write_checksum=True).compress(core())
    for length in range(len(data)):
        with pytest.raises(BadData):
            open_core(saved(tmp_path, data[:length]))


def test_every_changed_byte_of_a_compressed_core_is_noticed(tmp_path: Path) -> None:
    data = zstandard.ZstdCompressor(write_checksum=True).compress(core())
    whole = open_core(saved(tmp_path, data))
    for position in range(len(data)):
        changed = data[:position] + bytes([data[position] ^ 0x41]) + data[position + 1 :]
        try:
            found = open_core(saved(tmp_path, changed))
        except BadData:
            continue
        # Some header bits of a frame say nothing about its contents.
        assert pieces_of(found.memory) == pieces_of(whole.memory)


@pytest.mark.slow
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300), st.binary(min_size=1, max_size=9), st.sampled_from("<>"))
def test_changed_bytes_raise_bad_data_or_nothing(
    tmp_path: Path, position: int, change: bytes, order: str
) -> None:
    data = core(order)
    try:
        found = open_core(
            saved(tmp_path, data[:position] + change + data[position + len(change) :])
        )
    except BadData:
        return
    for start, size in zip(found.memory.starts, found.memory.sizes, strict=True):
        assert len(found.memory.read(int(start), int(size))) == int(size) <= len(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_anything_behind_the_magic_number(tmp_path: Path, rest: bytes) -> None:
    for magic in (b"\x7fELF", b"\x7fELF\x02\x01", b"\x28\xb5\x2f\xfd", b"\x7fELF\x02\x02"):
        with pytest.raises(BadData):
            open_core(saved(tmp_path, magic + rest))


def changed(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\x7f", "not an ELF core"),
        (b"hello, world\n", "begins with b'hell'"),
        (b"KDUMP   ", "not an ELF core"),
        (changed(core(), 4, b"\1"), "32-bit"),
        (changed(core(), 5, b"\3"), "headers do not fit"),
        (changed(core(), 16, b"\2\0"), "type 2"),
        (changed(core(), 18, b"\x3e\0"), "machine 62"),
        (core()[:HEADER], "headers do not fit"),
        (zstandard.compress(b"hello"), "not an ELF core"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "damaged|truncated|empty|not an ELF"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        open_core(saved(tmp_path, data))


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BadData, match="cannot open"):
            open_core(path)


def test_a_segment_without_bytes_is_no_memory(tmp_path: Path) -> None:
    data = core()
    second = HEADER + 2 * 56
    data = changed(data, second + 32, struct.pack("<QQ", 0, 0x4000))
    assert open_core(saved(tmp_path, data)).memory.starts.tolist() == [0x1000]
