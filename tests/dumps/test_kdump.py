"""kdump-compressed dumps: every page is read back, and exactly the missing ones are reported."""

from __future__ import annotations

import random
import resource
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps.elfcore import Note
from inspector.dumps.formats import Dump, open_dump
from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.memory.interface import CUT_OFF
from inspector.memory.numbers import addresses
from tests.dumps.kdumpwriter import COMPRESSORS, INCOMPLETE, KdumpSpec, flattened, kdump
from tests.profiles import examples

SIZES = (4096, 65536)
NOTE = struct.pack("<III", 11, 8, 0) + b"VMCOREINFO\0\0" + b"PAGE=1\n\0"
PLACE = {"version": 8, "status": 424, "page_size": 428, "sub": 432, "bitmaps": 436}


def page(seed: int, size: int = 4096) -> bytes:
    """Return a page that can be compressed: partly random, partly repeated, partly zeros."""
    part = random.Random(seed).randbytes(size // 16)
    return (part + part[: size // 32] * 3).ljust(size, b"\0")


def opened(tmp_path: Path, data: bytes) -> Dump:
    path = tmp_path / "dump"
    path.write_bytes(data)
    return open_dump(path)


def assert_holds(dump: Dump, pages: Mapping[int, bytes], size: int) -> None:
    numbers = sorted(pages)
    found = dump.memory.read_many(addresses(numbers) * np.uint64(size), size)
    assert found.present.all()
    for row, number in zip(found.data, numbers, strict=True):
        assert row.tobytes() == pages[number]


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("flat", [False, True])
def test_every_kind(tmp_path: Path, compression: str, size: int, order: str, flat: bool) -> None:
    pages = {number: page(number, size) for number in (0, 1, 5, 7, 8, 9, 63, 64, 200)}
    pages[6] = pages[65] = bytes(size)
    pages[66] = random.Random(0).randbytes(size)
    spec = KdumpSpec(pages, [2, 100], order, size, compression, vmcoreinfo=b"PAGESIZE=1\n")
    data = kdump(spec)
    if flat:
        step = 5000
        pieces = [(at, data[at : at + step]) for at in range(0, len(data), step)]
        random.Random(1).shuffle(pieces)
        data = flattened(pieces)
    dump = opened(tmp_path, data)
    assert_holds(dump, pages, size)
    assert dump.vmcoreinfo == "PAGESIZE=1\n"
    assert dump.dump_level == 31
    assert ("flattened" in dump.kind) is flat
    assert (compression if compression != "none" else "not compressed") in dump.kind


def test_what_is_missing_is_told_apart(tmp_path: Path) -> None:
    pages = {4: page(4), 6: page(6)}
    memory = opened(tmp_path, kdump(KdumpSpec(pages, excluded=[5], count=16))).memory
    for address, reason in (
        (5 * 4096, "excluded by makedumpfile's dump level 31"),
        (5 * 4096 - 1, "excluded by makedumpfile's dump level 31"),
        (0, "not in the target"),
        (15 * 4096, "not in the target"),
        (16 * 4096, "not in the target"),
        (1 << 63, "not in the target"),
        ((1 << 64) - 1, "not in the target"),
        (1 << 64, "not in the target"),
        (-1, "not in the target"),
    ):
        with pytest.raises(MemoryNotReadable, match=reason) as error:
            memory.read(address, 2)
        assert error.value.reason == reason
    where = addresses([0, 4 * 4096, 5 * 4096, 6 * 4096 - 4, 6 * 4096, (1 << 64) - 8])
    found = memory.read_many(where, 8)
    assert found.present.tolist() == [False, True, False, False, True, False]
    assert not found.data[~found.present].any()


@pytest.mark.parametrize(
    ("pages", "expected"), [((4, 6), [(4, 7)]), ((0, 5, 15), [(0, 1), (5, 6), (15, 16)])]
)
def test_where_the_machine_has_memory(
    tmp_path: Path, pages: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    there = {number: page(number) for number in pages}
    excluded = [5] if 5 not in pages and 4 in pages else []
    ram = opened(tmp_path, kdump(KdumpSpec(there, excluded=excluded, count=16))).memory.ram
    assert ram is not None
    ends = (ram.starts + ram.sizes).tolist()
    found = zip(ram.starts.tolist(), ends, strict=True)
    assert list(found) == [(first * 4096, end * 4096) for first, end in expected]


def test_a_dump_level_of_zero_is_not_blamed(tmp_path: Path) -> None:
    data = kdump(KdumpSpec({1: page(1)}, excluded=[0], level=0))
    with pytest.raises(MemoryNotReadable, match="left out of the dump"):
        opened(tmp_path, data).memory.read(0, 1)


def test_reads_of_any_length_and_place(tmp_path: Path) -> None:
    pages = {number: page(number) for number in range(3, 12)}
    memory = opened(tmp_path, kdump(KdumpSpec(pages))).memory
    whole = b"".join(pages[number] for number in sorted(pages))
    base = 3 * 4096
    source = random.Random(5)
    for _ in range(200):
        length = source.choice((1, 8, 16, 4096, 5000, 8192, 16384))
        inside = source.randrange(len(whole) - length)
        assert memory.read(base + inside, length) == whole[inside : inside + length]
    for length in (1, 8, 24, 4095, 4096, 4097, 8192, 12288):
        starts = [source.randrange(len(whole) - length) for _ in range(30)]
        starts += [0, 4096, 8192, len(whole) - length, starts[0]]
        found = memory.read_many(addresses(starts) + np.uint64(base), length)
        assert found.present.all()
        for row, start in zip(found.data, starts, strict=True):
            assert row.tobytes() == whole[start : start + length]
    aligned = memory.read_many(addresses([base, base + 4096]), 8192)
    assert aligned.data.tobytes() == whole[:8192] + whole[4096:12288]
    assert memory.read_many(addresses([]), 8).data.shape == (0, 8)
    assert memory.read(base, 0) == b""


@pytest.mark.slow
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(0, 70_000), st.integers(0, 3), min_size=1, max_size=40),
    st.sets(st.integers(0, 70_000), max_size=20),
    st.sampled_from(list(COMPRESSORS)),
)
def test_any_holes(
    tmp_path: Path, seeds: dict[int, int], others: set[int], compression: str
) -> None:
    pages = {number: page(seed) if seed else bytes(4096) for number, seed in seeds.items()}
    excluded = others - pages.keys()
    memory = opened(tmp_path, kdump(KdumpSpec(pages, excluded, compression=compression))).memory
    numbers = sorted(pages.keys() | excluded | {0, 70_001})
    found = memory.read_many(addresses(numbers) * np.uint64(4096) + np.uint64(64), 32)
    for row, here, number in zip(found.data, found.present, numbers, strict=True):
        assert here == (number in pages)
        assert row.tobytes() == (pages[number][64:96] if here else bytes(32))


@pytest.mark.slow
def test_a_page_far_away(tmp_path: Path) -> None:
    far = (0x2000_0000_0000 >> 16) + 3
    pages = {0: page(1, 65536), far: page(2, 65536)}
    assert_holds(opened(tmp_path, kdump(KdumpSpec(pages, page_size=65536))), pages, 65536)


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_header_versions(tmp_path: Path, version: int) -> None:
    pages = {3: page(3)}
    spec = KdumpSpec(pages, version=version, notes=NOTE, vmcoreinfo=b"PAGE=2\n")
    dump = opened(tmp_path, kdump(spec))
    assert_holds(dump, pages, 4096)
    expected = () if version < 3 else (Note("VMCOREINFO", 0, b"PAGE=2\n"),)
    if version >= 4:
        expected = (Note("VMCOREINFO", 0, b"PAGE=1\n\0"),)
    assert dump.notes == expected


@pytest.mark.parametrize("version", [2, 6])
def test_one_file_of_a_split_dump(tmp_path: Path, version: int) -> None:
    pages = {number: page(number) for number in range(10)}
    data = kdump(KdumpSpec(pages, [10], version=version, split=(3, 6)))
    dump = opened(tmp_path, data)
    assert dump.kind.startswith("one file of a kdump-compressed dump")
    assert_holds(dump, {number: pages[number] for number in (3, 4, 5)}, 4096)
    for number in (2, 6, 9):
        with pytest.raises(MemoryNotReadable, match="in another file of this split dump"):
            dump.memory.read(number * 4096, 8)
    with pytest.raises(MemoryNotReadable, match="excluded"):
        dump.memory.read(10 * 4096, 8)


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSORS)
@pytest.mark.parametrize("flat", [False, True])
def test_of_a_file_that_is_cut_off_the_rest_is_read(
    tmp_path: Path, compression: str, flat: bool
) -> None:
    pages = {number: page(number) for number in (0, 3, 4)}
    data = kdump(KdumpSpec(pages, [1], compression=compression, notes=NOTE))
    if flat:
        data = flattened([(0, data[:9000]), (9000, data[9000:])])
    places = {*range(0, len(data), 211), *range(len(data) - 40, len(data)), *range(4080, 4300, 3)}
    read = set()
    for length in sorted(places - {len(data)}):
        try:
            dump = opened(tmp_path, data[:length])
        except BadData:
            continue
        assert "cut off" in dump.kind
        assert "is cut off" in dump.lacks
        for number, contents in pages.items():
            if dump.memory.read_many(addresses([number * 4096]), 4096).present.all():
                assert dump.memory.read(number * 4096, 4096) == contents
                read.add((length, number))
                continue
            with pytest.raises(MemoryNotReadable, match=CUT_OFF):
                dump.memory.read(number * 4096, 4096)
        assert not dump.memory.read_many(addresses([1 << 12]), 8).present.any()
    counts = [sum(number == one for _, number in read) for one in pages]
    assert counts[0] > counts[1] > counts[2], "what was written first is cut off last"
    assert bool(counts[2]) == flat, "the end of the flattened form comes after the last page"


def test_a_page_beyond_the_end_is_missing(tmp_path: Path) -> None:
    pages = {number: page(number) for number in range(4)}
    data = bytearray(kdump(KdumpSpec(pages)))
    descriptors = 4096 * 4
    struct.pack_into("<Q", data, descriptors + 24, len(data) - 1)
    dump = opened(tmp_path, bytes(data))
    assert "cut off" in dump.kind
    assert_holds(dump, {number: pages[number] for number in (0, 2, 3)}, 4096)
    with pytest.raises(MemoryNotReadable, match="which is cut off"):
        dump.memory.read(4096, 8)


def test_a_dump_that_was_not_written_to_its_end(tmp_path: Path) -> None:
    pages = {number: page(number) for number in range(3)}
    data = bytearray(kdump(KdumpSpec(pages, status=INCOMPLETE)))
    struct.pack_into("<QI", data, 4096 * 4 + 2 * 24, 0, 0)
    dump = opened(tmp_path, bytes(data))
    assert "not written to its end" in dump.kind
    assert_holds(dump, {0: pages[0], 1: pages[1]}, 4096)
    with pytest.raises(MemoryNotReadable, match="was not written to its end"):
        dump.memory.read(2 * 4096, 8)
    cut = opened(tmp_path, bytes(data[:-400]))
    assert cut.memory.read(0, 8) == pages[0][:8]
    assert not cut.memory.read_many(addresses([4096, 8192]), 8).present.any()


@pytest.mark.parametrize("compression", ["zlib", "lzo", "snappy", "zstd"])
def test_a_damaged_page_is_missing_and_the_others_are_not(tmp_path: Path, compression: str) -> None:
    pages = {number: page(number) for number in range(3)}
    data = bytearray(kdump(KdumpSpec(pages, compression=compression)))
    offset, stored = struct.unpack_from("<QI", data, 4096 * 4 + 24)
    data[offset : offset + stored] = b"\xff" * stored
    dump = opened(tmp_path, bytes(data))
    assert_holds(dump, {0: pages[0], 2: pages[2]}, 4096)
    assert dump.memory.read_many(addresses([0, 4096, 8192]), 8).present.tolist() == [1, 0, 1]
    with pytest.raises(MemoryNotReadable, match="its page is damaged in the dump"):
        dump.memory.read(4096, 8)


@pytest.mark.parametrize(
    ("size", "flags", "message"),
    [
        (0, 1, "0 bytes cannot hold a page"),
        (4097, 1, "4097 bytes cannot hold a page"),
        (100, 0, "100 bytes instead of 4096"),
        (100, 3, "do not name one compression"),
        (0xFFFF_FFFF, 1, "cannot hold a page"),
    ],
)
def test_a_descriptor_that_cannot_be(tmp_path: Path, size: int, flags: int, message: str) -> None:
    pages = {number: page(number) for number in range(3)}
    spec = KdumpSpec(pages, compression="none", status=0)
    data = bytearray(kdump(spec))
    struct.pack_into("<II", data, 4096 * 4 + 8, size, flags)
    dump = opened(tmp_path, bytes(data))
    with pytest.raises(MemoryNotReadable, match=message):
        dump.memory.read(0, 8)
    assert dump.memory.read(4096, 8) == pages[1][:8]


def bomb(compression: str) -> bytes:
    return COMPRESSORS[compression][1](bytes(1 << 16))


@pytest.mark.parametrize("compression", ["zlib", "lzo", "snappy", "zstd"])
def test_a_page_that_expands_to_more_than_a_page(tmp_path: Path, compression: str) -> None:
    assert len(bomb(compression)) <= 4096
    data = bytearray(kdump(KdumpSpec({0: page(0)}, compression=compression)))
    place = len(data)
    data += bomb(compression)
    struct.pack_into("<QI", data, 4096 * 4, place, len(data) - place)
    with pytest.raises(MemoryNotReadable, match=r"damaged in the dump \("):
        opened(tmp_path, bytes(data)).memory.read(0, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_size": 0}, "neither byte order"),
        ({"page_size": 1000}, "neither byte order"),
        ({"version": 1000}, "neither byte order"),
        ({"sub": 0}, "cannot describe"),
        ({"sub": 0xFFFF_FFFF}, "bitmaps lie beyond"),
        ({"bitmaps": 0xFFFF_FFFE}, "bitmaps lie beyond"),
        ({"bitmaps": 0}, "cannot describe"),
        ({"bitmaps": 3}, "cannot describe"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    data = bytearray(kdump(KdumpSpec({0: page(0)})))
    for name, value in changes.items():
        struct.pack_into("<I", data, PLACE[name], value)
    with pytest.raises(BadData, match=message):
        opened(tmp_path, bytes(data))


@pytest.mark.parametrize("field", [4, 5, 6, 7, 8, 11, 12, 13])
@pytest.mark.parametrize("value", [1 << 20, 1 << 40, (1 << 63) + 1, (1 << 64) - 1])
def test_absurd_fields_of_the_sub_header(tmp_path: Path, field: int, value: int) -> None:
    data = bytearray(kdump(KdumpSpec({0: page(0)}, notes=NOTE, vmcoreinfo=b"x", split=(0, 1))))
    struct.pack_into("<Q", data, 4096 + 8 * (field - 1), value)
    try:
        opened(tmp_path, bytes(data)).memory.read(0, 8)
    except BadData:
        pass
    except MemoryNotReadable:
        assert field == 11


def test_other_machines(tmp_path: Path) -> None:
    with pytest.raises(TargetNotSupported, match="x86_64"):
        opened(tmp_path, kdump(KdumpSpec({0: page(0)}, machine=b"x86_64")))
    data = bytearray(kdump(KdumpSpec({0: page(0)})))
    struct.pack_into("<5I", data, 412, 0, 4096, 1, 2, 9)
    with pytest.raises(BadData, match="32-bit"):
        opened(tmp_path, bytes(data))


def test_snappy_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = kdump(KdumpSpec({0: page(0)}, compression="snappy"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TargetNotSupported, match=r"pip install 'kvmhv-inspector\[kdump\]'"):
        opened(tmp_path, data)


@pytest.mark.slow
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.integers(0, 500), st.integers(4096, 4220), st.integers(16384, 17000)),
    st.binary(min_size=1, max_size=9),
    st.sampled_from(list(COMPRESSORS)),
)
def test_changed_bytes_are_an_error_or_nothing(
    tmp_path: Path, position: int, change: bytes, compression: str
) -> None:
    pages = {number: page(number) for number in range(3)}
    data = kdump(KdumpSpec(pages, compression=compression, notes=NOTE))
    data = data[:position] + change + data[position + len(change) :]
    try:
        memory = opened(tmp_path, data).memory
        memory.read_many(addresses(range(0, 20480, 512)), 8)
        memory.read(0, 8192)
    except InspectorError:
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=600))
def test_anything_behind_the_magic_number(tmp_path: Path, rest: bytes) -> None:
    for magic in (b"KDUMP   ", b"KDUMP   \6\0\0\0", b"makedumpfile\0\0\0\0"):
        with pytest.raises((BadData, TargetNotSupported)):
            opened(tmp_path, magic + rest)


def test_a_large_dump_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 100 GB, with the bitmaps and descriptors of a real one."""
    count = 25_000_000
    data = kdump(KdumpSpec({0: page(0), 1: page(1)}, count=count, compression="none"))
    half = struct.unpack_from("<I", data, PLACE["bitmaps"])[0] // 2 * 4096
    first = 8192
    descriptors = first + 2 * half
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(data[:first])
        full = b"\xff" * (count // 8)
        file.write(full.ljust(half, b"\0") * 2)
        file.truncate(descriptors + 24 * count + 4096 * count)
        for number in (0, 12_345_678, count - 1):
            place = descriptors + 24 * count + 4096 * number
            file.seek(descriptors + 24 * number)
            file.write(struct.pack("<QIIQ", place, 4096, 0, 0))
            file.seek(place)
            file.write(page(number))
    assert path.stat().st_size > 100_000_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = open_dump(path).memory
    for number in (0, 12_345_678, count - 1):
        assert memory.read(4096 * number, 4096) == page(number)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < (64 << 10)
