"""QEMU's map of its memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import TargetNotSupported
from inspector.live.mtree import Block, large_blocks, parse_mtree
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges

MTREE = """\
FlatView #0
 AS "pci-bridge0-io", root: pci-io
 Root memory region: pci-io
  0000000000000000-000000000000ffff (prio 0, i/o): pci-io

FlatView #1
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, i/o): io

FlatView #2
 AS "pnv-phb4-dma", root: dma
 Root memory region: dma
  0000000000000000-00000000ffffffff (prio 0, ram): not-the-machines

FlatView #3
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-000000003fffffff (prio 0, ram): pnv.ram
  0000000040000000-000000007fffffff (prio 0, ram): pnv.ram @0000000040000000
  0000000100000000-000000017fffffff (prio -1, ram): dimm
  0006030200000000-00060302000fffff (prio 0, i/o): xscom
  0006030203180000-000603020318ffff (prio 0, rom): flash
  0006030203190000-000603020319ffff (prio 0, romd): flash2
  0006030300000000-0006030300000fff (prio 0, nv-ram): nothing

FlatView #4
 AS "later", root: later
  0000000200000000-00000002ffffffff (prio 0, ram): not-the-machines-either
"""


def test_the_ram_of_the_system_address_space() -> None:
    ram = parse_mtree(MTREE).ram
    assert ram.starts.tolist() == [0, 0x1_0000_0000]
    assert ram.sizes.tolist() == [0x8000_0000, 0x8000_0000]


CELLS = """\
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000005fffffff (prio 0, ram): ram-node0
  0000000060000000-000000007fffffff (prio 0, ram): ram-node1
  0000000080000000-000000008fffffff (prio 0, ram): ram-node1 @0000000020000000
  0000000090000000-000000009fffffff (prio 0, ram): dimm0
  00000000a0000000-00000000afffffff (prio 0, ram): dimm0
"""


def test_blocks_that_touch_are_one_range_in_pieces() -> None:
    ram, pieces = parse_mtree(CELLS)
    assert ram.starts.tolist() == [0]
    assert ram.sizes.tolist() == [0xB000_0000]
    assert pieces.starts.tolist() == [0, 0x6000_0000, 0x9000_0000, 0xA000_0000]
    assert pieces.sizes.tolist() == [0x6000_0000, 0x3000_0000, 0x1000_0000, 0x1000_0000]


def test_carriage_returns_do_not_matter() -> None:
    assert parse_mtree(MTREE.replace("\n", "\r\n")).ram.starts.tolist() == [0, 0x1_0000_0000]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown command: 'info mtree -f'\n",
        MTREE.replace("ram)", "i/o)"),
        MTREE[:420],
        MTREE.replace("000000017fffffff", "ffffffffffffffff"),
        MTREE.replace("000000017fffffff", "00000000ffffffff"),
    ],
)
def test_text_without_ram_is_refused(text: str) -> None:
    with pytest.raises(TargetNotSupported, match="no RAM"):
        parse_mtree(text)


RANGES = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=4)


@pytest.mark.slow
@given(RANGES, st.lists(st.integers(0, 80), max_size=10), st.integers(1, 9))
def test_only_records_wholly_inside_are_covered(
    gaps: list[tuple[int, int]], where: list[int], length: int
) -> None:
    ranges = []
    end = 0
    for gap, size in gaps:
        ranges.append((end + gap, size))
        end += gap + size
    ram = Ranges(addresses([s for s, _ in ranges]), addresses([n for _, n in ranges]))
    expected = [
        any(start <= a and a + length <= start + size for start, size in ranges) for a in where
    ]
    assert ram.cover(addresses(where), length).tolist() == expected


RAMBLOCK = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                 pnv.ram    4 KiB  0x0000000000000000 0x0000000180000000 0x0000000180000000 0x00007f15abe00000  rw
      homer-chip0-memory    4 KiB  0x0000000180000000 0x0000000000400000 0x0000000000400000 0x00007f159f200000  rw
"""  # noqa: E501


def test_the_block_that_is_memory() -> None:
    assert large_blocks(RAMBLOCK.replace("\n", "\r\n")) == large_blocks(RAMBLOCK)
    assert large_blocks(RAMBLOCK) == [Block("pnv.ram", 0x1_8000_0000, 0x7F15_ABE0_0000)]
    second = RAMBLOCK.splitlines()[1].replace("pnv.ram", "dimm0  ")
    assert [block.name for block in large_blocks(RAMBLOCK + second)] == ["pnv.ram", "dimm0"]


def test_a_list_of_blocks_of_an_older_qemu_tells_nothing() -> None:
    old = "\n".join(line.rsplit("0x", 1)[0] for line in RAMBLOCK.splitlines())
    assert large_blocks(old) == []
