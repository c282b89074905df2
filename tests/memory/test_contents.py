"""Bytes of a file are read like those of an array, whatever happens to the file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps.file import open_file
from inspector.dumps.formats import open_dump
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.contents import BytesLost, FileContents, HeldContents
from inspector.memory.numbers import addresses

SIZE = 1 << 20
BYTES = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)


def of_file(folder: Path) -> FileContents:
    path = folder / "bytes"
    path.write_bytes(BYTES.tobytes())
    return FileContents(os.open(path, os.O_RDONLY), SIZE)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.integers(1, 20_000).flatmap(
        lambda length: st.tuples(
            st.just(length), st.lists(st.integers(0, SIZE - length), max_size=60)
        )
    )
)
def test_a_file_and_an_array_say_the_same(tmp_path: Path, asked: tuple[int, list[int]]) -> None:
    length, positions = asked
    held, kept = HeldContents(BYTES), of_file(tmp_path)
    rows = [np.zeros((len(positions), length), dtype=np.uint8) for _ in range(2)]
    assert held.gather(addresses(positions), rows[0]).all()
    assert kept.gather(addresses(positions), rows[1]).all()
    assert np.array_equal(rows[0], rows[1])
    for position in positions[:3]:
        assert held.read(position, length) == kept.read(position, length)


@pytest.mark.parametrize("length", [8, 5000])
@pytest.mark.parametrize("step", [1, 2, 9000])
def test_a_file_that_is_cut_while_it_is_read(length: int, step: int, tmp_path: Path) -> None:
    kept = of_file(tmp_path)
    end = 500_000
    os.truncate(tmp_path / "bytes", end)
    positions = np.arange(0, SIZE - length, length * step, dtype=np.uint64)
    rows = np.ones((positions.size, length), dtype=np.uint8)
    there = kept.gather(positions, rows)
    assert np.array_equal(there, positions + length <= end)
    assert not rows[~there].any()
    row = int(np.flatnonzero(there)[-1])
    at = int(positions[row])
    assert rows[row].tobytes() == BYTES[at : at + length].tobytes()
    with pytest.raises(BytesLost, match="cut off while it was read"):
        kept.read(end - 1, 2)


def test_memory_that_is_gone_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(BYTES.tobytes())
    memory = open_dump(f"raw:{path}").memory
    os.truncate(path, 4096)
    assert memory.read(0, 4096) == BYTES[:4096].tobytes()
    with pytest.raises(MemoryNotReadable, match="cut off while it was read"):
        memory.read(4000, 200)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "there"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BadData, match="cannot open"):
        open_file(path)


@pytest.mark.parametrize(
    "beginning",
    [
        b"\x28\xb5\x2f\xfd",
        b"\xfd7zXZ\0",
        b"makedumpfile".ljust(16, b"\0") + (1).to_bytes(8) * 2,
        b"\x7fELF\x02\x01".ljust(64, b"\0"),
        b"KDUMP   \x06\0\0\0",
    ],
)
def test_terabytes_of_nothing(beginning: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hole"
    path.write_bytes(beginning)
    os.truncate(path, 1 << 43)
    with pytest.raises(BadData):
        open_dump(path)
