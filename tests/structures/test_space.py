"""Kernel addresses and guest addresses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import LAYOUTS, LINEAR, Area, Kernel, MemslotRange, build, mapping
from inspector.errors import MemoryNotReadable
from inspector.memory.numbers import addresses
from inspector.structures.space import GuestSpace, KernelSpace

PAGE_SIZES = st.sampled_from((4096, 1 << 16))


class Space:
    """A kernel with some bytes in its linear map and in vmalloc space."""

    def __init__(self, page_size: int, order: str = "<") -> None:
        self.kernel = Kernel(page_size, order)
        self.data = np.random.default_rng(1).bytes(3 * page_size)
        self.area = self.kernel.vmalloc(len(self.data))
        self.linear = self.kernel.kmalloc(len(self.data))
        self.write(self.area, self.data)
        self.kernel.write(self.linear, self.data)

    def write(self, area: Area, data: bytes) -> None:
        size = self.kernel.page_size
        for i, frame in enumerate(area.frames.tolist()):
            self.kernel.write(LINEAR | frame, data[i * size : (i + 1) * size])

    def opened(self) -> KernelSpace:
        order, size = self.kernel.byte_order, self.kernel.page_size
        profile = build([], size, order).profile
        own = {**profile.symbols, "swapper_pg_dir": self.kernel.own_table()}
        return KernelSpace(self.kernel.memory(), type(profile)(**{**vars(profile), "symbols": own}))


SPACES = {size: Space(size) for size in (4096, 1 << 16)}
OPENED = {size: space.opened() for size, space in SPACES.items()}


@given(PAGE_SIZES, st.floats(0, 1), st.integers(0, 9000), st.booleans())
def test_reads_cross_pages(size: int, place: float, length: int, vmalloc: bool) -> None:
    space = SPACES[size]
    begin = int(place * len(space.data))
    data = space.data[begin : begin + length]
    base = space.area.base if vmalloc else space.linear
    assert OPENED[size].read(base + begin, len(data)) == data
    wanted = min(length, 64)
    where = addresses([base + begin, base, base + size - 8])
    records = OPENED[size].read_many(where, wanted)
    for row, start in enumerate((begin, 0, size - 8)):
        expected = space.data[start : start + wanted]
        if len(expected) == wanted:
            assert records.present[row]
            assert records.data[row].tobytes() == expected


@pytest.mark.parametrize("size", [4096, 1 << 16])
def test_whole_pages_are_read_at_once(size: int) -> None:
    space = SPACES[size]
    records = OPENED[size].read_many(addresses([space.area.base, space.area.base + size]), 2 * size)
    assert records.present.tolist() == [True, True]
    assert records.data[1].tobytes() == space.data[size:]


@pytest.mark.parametrize("size", [4096, 1 << 16])
def test_the_hole_behind_an_area_is_not_readable(size: int) -> None:
    space, opened = SPACES[size], OPENED[size]
    end = space.area.base + len(space.data)
    with pytest.raises(MemoryNotReadable, match=r"kernel address|physical address"):
        opened.read(end - 4, 8)
    assert opened.read_many(addresses([end - 4, end - 8]), 8).present.tolist() == [False, True]
    pages = opened.read_many(addresses([end - size, end]), size)
    assert pages.present.tolist() == [True, False]
    with pytest.raises(MemoryNotReadable, match="no page table maps it"):
        opened.physical(end)


@pytest.mark.parametrize(
    "address", [-1, 0, 0x1000, 0xBFFF_FFFF_FFFF_F000, (1 << 64) - 1, 1 << 64, 0xC00C_0000_0000_0000]
)
def test_addresses_of_nothing(address: int) -> None:
    opened = OPENED[4096]
    with pytest.raises(MemoryNotReadable):
        opened.read(address, 8)
    with pytest.raises(MemoryNotReadable):
        opened.physical(address)


@pytest.mark.parametrize("order", ["<", ">"])
def test_integers_have_the_kernels_byte_order(order: str) -> None:
    kernel = Kernel(4096, order)
    where = kernel.new("kvm", mmu_lock=0x0102_0304, arch__radix=1, mm=0x1122_3344_5566_7788)
    opened = KernelSpace(kernel.memory(), build([], byte_order=order).profile)
    assert opened.field("kvm", where, "mmu_lock") == 0x0102_0304
    assert opened.field("kvm", where, "arch.radix") == 1
    assert opened.pointer(where + LAYOUTS["kvm"][1]["mm"][0]) == 0x1122_3344_5566_7788
    found, present = opened.words(addresses([where + 40, LINEAR | (1 << 40)]))
    assert present.tolist() == [True, False]
    assert found[0] == 0x1122_3344_5566_7788


MEMSLOTS = (
    MemslotRange(16, 4, 0x7000_0010_0000),
    MemslotRange(0, 8, 0x7000_0000_0000),
    MemslotRange(20, 2, 0x7000_0020_0000),
)


def guest(size: int) -> tuple[GuestSpace, dict[int, bytes]]:
    """Return a guest's memory and its bytes by page; page 3 has none."""
    kernel = Kernel(size, "<")
    content = {}
    hvas: list[int] = []
    frames: list[int] = []
    for slot in MEMSLOTS:
        for i, frame in enumerate(kernel.pages(slot.npages).tolist()):
            gfn = slot.base_gfn + i
            if gfn == 3:
                continue
            content[gfn] = np.random.default_rng(gfn).bytes(size)
            kernel.write(LINEAR | frame, content[gfn])
            hvas.append(slot.userspace_addr + i * size)
            frames.append(frame)
    order = np.argsort(hvas)
    pgd = kernel.tree(mapping(addresses(hvas)[order], addresses(frames)[order], size))
    opened = KernelSpace(kernel.memory(), build([], size).profile)
    return GuestSpace(opened, LINEAR | pgd, MEMSLOTS), content


GUESTS = {size: guest(size) for size in (4096, 1 << 16)}


@pytest.mark.slow
@given(PAGE_SIZES, st.integers(0, 24), st.integers(-16, 16), st.integers(1, 40))
def test_guest_memory_is_read_across_memslots(size: int, page: int, off: int, length: int) -> None:
    space, content = GUESTS[size]
    address = max(0, page * size + off)
    places = [divmod(address + i, size) for i in range(length)]
    if all(gfn in content for gfn, _ in places):
        expected = bytes(content[gfn][inside] for gfn, inside in places)
        assert space.read(address, length) == expected
    else:
        with pytest.raises(MemoryNotReadable):
            space.read(address, length)


def test_a_guest_without_memslots_has_no_memory() -> None:
    space, _ = GUESTS[4096]
    none = GuestSpace(OPENED[4096], LINEAR, ())
    assert none.read_many(addresses([0, 1]), 8).present.tolist() == [False, False]
    assert space.name == "L1"
