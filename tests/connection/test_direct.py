"""Reading the memory of another process, which in these tests is the test's own."""

from __future__ import annotations

import mmap
import os
import socket

import numpy as np
import pytest

from inspector.errors import MemoryNotReadable, TargetNotSupported
from inspector.live.direct import IOV_MAX, DirectMemory, hva_of
from inspector.live.mtree import RamMap
from inspector.live.processes import is_taken, process_behind
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges


@pytest.fixture(scope="module")
def content() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, 1 << 16, dtype=np.uint8)


def direct(content: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> DirectMemory:
    half = content.size // 2
    ram = Ranges(addresses([0, 1 << 32]), addresses([half, half]))
    hva = addresses([content.ctypes.data, content.ctypes.data + half])
    return DirectMemory(os.getpid(), RamMap(ram, ram), hva)


def test_blocks_that_touch_lie_in_places_of_their_own(
    content: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    # in physical addresses a, b and c follow each other; in the process they do not
    a, b, c = content[0x8000:0xA000], content[0x0:0x1000], content[0x4000:0x5000]
    whole = np.concatenate((a, b, c)).tobytes()
    sizes = addresses([part.size for part in (a, b, c)])
    pieces = Ranges(np.cumsum(sizes) - sizes, sizes)
    ram = RamMap(Ranges(addresses([0]), addresses([len(whole)])), pieces)
    memory = DirectMemory(os.getpid(), ram, addresses([part.ctypes.data for part in (a, b, c)]))
    where = addresses([0x1000, 0x1FFC, 0x2FFE, 0x3FF8, 0x3FF9])
    records = memory.read_many(where, 8)
    assert records.present.tolist() == [True, True, True, True, False]
    for address, row in zip(where[:4].tolist(), records.data, strict=False):
        assert row.tobytes() == whole[address : address + 8]
    assert memory.read(0, len(whole)) == whole
    copier = memory.copier(Ranges(addresses([0x800, 0x3F00]), addresses([0x3000, 0x100])))
    copier.copy()
    assert copier.memory.read(0x800, 0x3000) == whole[0x800:0x3800]
    assert copier.memory.read(0x3F00, 0x100) == whole[0x3F00:0x4000]


def test_a_part_that_is_not_mapped_is_said() -> None:
    with mmap.mmap(-1, 2 * mmap.PAGESIZE) as area:
        start = np.frombuffer(area, dtype=np.uint8).ctypes.data
        ram = Ranges(addresses([0]), addresses([1 << 40]))
        memory = DirectMemory(os.getpid(), RamMap(ram, ram), addresses([start]))
        with pytest.raises(MemoryNotReadable, match=r"has \d+ of these bytes|Bad address"):
            memory.read(0, 1 << 32)


def test_bytes_are_those_of_the_process(
    content: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    memory = direct(content)
    half = content.size // 2
    assert memory.read(16, 100) == content[16:116].tobytes()
    assert memory.read((1 << 32) + 5, 9) == content[half + 5 : half + 14].tobytes()
    where = np.concatenate(
        (np.arange(2 * IOV_MAX + 7, dtype=np.uint64) * 8, addresses([half, 1 << 40, half - 4]))
    )
    data, present = memory.read_many(where, 8)
    assert present.sum() == 2 * IOV_MAX + 7
    assert data[present].tobytes() == content[: 8 * (2 * IOV_MAX + 7)].tobytes()
    assert not data[~present].any()


def test_copies_tell_what_has_changed(
    content: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    content = content.copy()
    half = content.size // 2
    ranges = Ranges(addresses([0x100, 0x800, (1 << 32) + 64]), addresses([64, 16, 4096]))
    copier = direct(content).copier(ranges)
    copier.copy()
    assert copier.memory.read(0x100, 64) == content[0x100:0x140].tobytes()
    copier.keep()
    chance = np.random.default_rng(2)
    for _ in range(20):
        places = [int(place) for place in chance.integers(0, half + 8192, 200)]
        before = content.copy()
        content[places] ^= chance.integers(0, 2, 200, dtype=np.uint8)
        words = np.flatnonzero(content.view(np.uint64) != before.view(np.uint64)).astype(np.uint64)
        physical = words * 8 + np.where(words * 8 >= half, (1 << 32) - half, 0).astype(np.uint64)
        inside = [place for place in physical.tolist() if ranges.hold(place)]
        copier.copy()
        assert (
            copier.memory.read((1 << 32) + 64, 4096) == content[half + 64 : half + 4160].tobytes()
        )
        assert copier.changed().tolist() == inside
        copier.copy()
        assert copier.changed().tolist() == inside
        copier.keep()
    copier.copy()
    assert copier.changed().size == 0


def test_what_is_not_ram_is_not_readable(
    content: np.ndarray[tuple[int], np.dtype[np.uint8]],
) -> None:
    with pytest.raises(MemoryNotReadable):
        direct(content).read(content.size // 2 - 4, 8)


def test_a_process_that_lacks_the_memory_is_an_error() -> None:
    ram = Ranges(addresses([0]), addresses([4096]))
    with pytest.raises((MemoryNotReadable, TargetNotSupported)):
        DirectMemory(os.getpid(), RamMap(ram, ram), addresses([8])).read(0, 8)


def test_the_process_behind_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert process_behind(port) == os.getpid()
    assert process_behind(port) is None


def test_a_client_of_a_port_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_taken(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert is_taken(port)
        assert not is_taken(port)


def test_the_answer_to_gpa2hva() -> None:
    text = "Host virtual address for 0x0 (pnv.ram) is 0x7f5a3be00000\n"
    assert hva_of(text) == 0x7F5A_3BE0_0000
    with pytest.raises(TargetNotSupported, match="gpa2hva"):
        hva_of("Memory at address 0x0 is not RAM\n")
