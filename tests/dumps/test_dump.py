"""Dumps of every kind through ``open_dump``: raw images, flattened files, filtered ELF cores."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps.elfcore import Note, write_core
from inspector.dumps.file import open_file
from inspector.dumps.formats import open_dump
from inspector.dumps.raw import parse_raw
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.interface import why_missing
from inspector.memory.numbers import addresses
from tests.dumps.kdumpwriter import KdumpSpec, flattened, kdump
from tests.fixtures import SMALL
from tests.memories import of_segments, pieces_of

LINEAR = 0xC000_0000_0000_0000
NOTES = (Note("VMCOREINFO", 0, b"OSRELEASE=1\n"),)
PHDRS = 64 + 56


def core(order: str = "<") -> bytearray:
    memory = of_segments([(0x1000, b"one" * 11), (0x8000_0000, b"two" * 5)])
    return bytearray(write_core(memory, NOTES, order))


def saved(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "dump"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("flat", [False, True])
def test_elf_cores(tmp_path: Path, order: str, flat: bool) -> None:
    data = bytes(core(order))
    if flat:
        data = flattened([(at, data[at : at + 7]) for at in range(0, len(data), 7)])
    dump = open_dump(saved(tmp_path, data))
    assert dump.kind == ("a flattened ELF core" if flat else "an ELF core")
    assert dump.vmcoreinfo == "OSRELEASE=1\n"
    assert dump.dump_level is None
    assert dump.memory.read(0x1000, 33) == b"one" * 11
    assert dump.memory.read(0x8000_0000, 15) == b"two" * 5
    found = dump.memory.read_many(addresses([0x1001, 0x1020, 0x8000_0008]), 4)
    assert found.present.tolist() == [True, False, True]


def test_a_capture(tmp_path: Path) -> None:
    dump = open_dump(SMALL)
    assert dump.core is not None
    assert dump.core.note("INSPECTOR") is not None
    assert dump.vmcoreinfo is not None
    assert "OSRELEASE=" in dump.vmcoreinfo


@pytest.mark.parametrize("order", ["<", ">"])
def test_memory_without_bytes_was_left_out(tmp_path: Path, order: str) -> None:
    data = core(order)
    struct.pack_into(order + "QQ", data, PHDRS + 32, 33, 0x2000)
    memory = open_dump(saved(tmp_path, bytes(data))).memory
    assert memory.read(0x1000, 33) == b"one" * 11
    assert why_missing(memory, 0x1000 + 33, 1) == "left out of the dump"
    assert why_missing(memory, 0x1000 + 30, 8) == "left out of the dump"
    assert why_missing(memory, 0x2FFF, 1) == "left out of the dump"
    assert why_missing(memory, 0x3000, 1) == "not in the dump"
    assert why_missing(memory, 1 << 40, 1) == "not in the target"
    assert not memory.read_many(addresses([0x2000]), 8).present.any()


@pytest.mark.parametrize(
    ("virtual", "physical", "expected"),
    [
        (LINEAR + 0x5000, 0, 0x5000),
        (LINEAR + 0x5000, (1 << 64) - 1, 0x5000),
        (LINEAR, 0, 0),
        (0, 0, 0),
        (LINEAR + 0x5000, 0x1000, 0x1000),
        (0xC008_0000_0000_0000, (1 << 64) - 1, None),
    ],
)
def test_where_a_segment_lies(
    tmp_path: Path, virtual: int, physical: int, expected: int | None
) -> None:
    data = core()
    struct.pack_into("<QQ", data, PHDRS + 16, virtual, physical)
    memory = open_dump(saved(tmp_path, bytes(data))).memory
    if expected is None:
        assert why_missing(memory, 0x1000, 1) == "not in the dump"
    else:
        assert memory.read(expected, 3) == b"one"


def test_raw_images(tmp_path: Path) -> None:
    path = saved(tmp_path, b"KDUMP   " + bytes(range(256)))
    for target, start in (
        (f"raw:{path}", 0),
        (f"raw:{path}@0x80000000", 0x8000_0000),
        (f"raw:{path}@4096", 4096),
    ):
        dump = open_dump(target)
        assert f"{start:#x}" in dump.kind
        assert dump.memory.read(start + 8, 256) == bytes(range(256))
        for outside in (start - 1, start + 264):
            with pytest.raises(MemoryNotReadable, match=r"not in the (dump|target)"):
                dump.memory.read(outside, 1)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("@here", "'here' is not an address"),
        ("@", "'' is not an address"),
        ("@-5", "does not fit"),
        ("@0xffffffffffffffff", "does not fit"),
        ("@0x10000000000000000", "does not fit"),
    ],
)
def test_raw_images_with_a_wrong_address(tmp_path: Path, suffix: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        open_dump(f"raw:{saved(tmp_path, bytes(16))}{suffix}")


def test_raw_images_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="cannot open"):
        open_dump(f"raw:{tmp_path / 'none'}")
    with pytest.raises(BadData, match="is empty"):
        open_dump(f"raw:{saved(tmp_path, b'')}@0x1000")
    assert parse_raw("raw:a@b@0x10") == (Path("a@b"), 16)


@pytest.mark.parametrize("data", [b"x", b"hello, world\n", b"DISKDUMP" * 9, bytes(4096)])
def test_what_is_no_dump_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BadData, match=r"not a dump of a known format.*raw:FILE@0xADDRESS"):
        open_dump(saved(tmp_path, data))


def test_the_record_written_last_wins(tmp_path: Path) -> None:
    data = kdump(KdumpSpec({0: bytes(range(256)) * 16}, compression="none"))
    pieces = [
        (0, bytes(len(data))),
        (100, b"\xaa" * 300),
        (0, data[:50]),
        (30, data[30:9000]),
        (9000, data[9000:]),
        (8000, b""),
    ]
    dump = open_dump(saved(tmp_path, flattened(pieces)))
    assert dump.memory.read(0, 4096) == bytes(range(256)) * 16


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=30)), max_size=12))
def test_any_records(tmp_path: Path, pieces: list[tuple[int, bytes]]) -> None:
    expected: dict[int, int] = {}
    for position, data in pieces:
        expected |= dict(enumerate(data, position))
    file = open_file(saved(tmp_path, flattened(pieces)))
    found = {
        start + i: byte for start, data in pieces_of(file.contents) for i, byte in enumerate(data)
    }
    assert found == expected
    assert file.size == max(expected, default=-1) + 1


def test_a_part_that_no_record_wrote(tmp_path: Path) -> None:
    data = kdump(KdumpSpec({0: bytes(4096), 1: b"\1" * 4096}))
    for missing in range(0, len(data), 1000):
        pieces = [(0, data[:missing]), (missing + 50, data[missing + 50 :])]
        try:
            memory = open_dump(saved(tmp_path, flattened(pieces))).memory
            found = memory.read_many(addresses([0, 4096]), 4096)
        except BadData:
            continue
        for row, here, value in zip(found.data, found.present, (0, 1), strict=True):
            assert not here or np.all(row == value)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (struct.pack(">qq", -2, 5), "has a bad record"),
        (struct.pack(">qq", 0, -5), "has a bad record"),
        (struct.pack(">qq", 1 << 62, 1), "has a bad record"),
        (struct.pack(">qq", 0, 1 << 61), "cut off within a record"),
        (struct.pack(">qq", 0, 5) + b"1234", "cut off within a record"),
        (struct.pack(">qq", 0, 4) + b"1234", "has no end"),
        (b"", "has no end"),
    ],
)
def test_damaged_flattened_files(tmp_path: Path, records: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        open_dump(saved(tmp_path, flattened([], end=False) + records))


def test_a_flattened_form_of_the_future(tmp_path: Path) -> None:
    data = bytearray(flattened([]))
    data[31] = 2
    with pytest.raises(BadData, match="makedumpfile -R"):
        open_dump(saved(tmp_path, bytes(data)))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="copy it to a file first"):
        open_dump("/proc/self/status")
    with pytest.raises(BadData, match="cannot open"):
        open_dump(tmp_path)
