"""The bits of a radix page-table entry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector import pte

DWORD = 0xC000_0000_0010_00AD
"""Dword 0 as Linux writes it: host radix, 52 bits, a table at 1 MiB with 2^13 entries."""


def test_a_partition_entry_as_linux_writes_it() -> None:
    assert pte.partition_root(DWORD) == pte.Root(0x10_0000, 13)


@pytest.mark.parametrize(
    "dword",
    [
        0,
        (DWORD & ~0x1F) | 12,
        DWORD & ~0xE0,
        DWORD & ~(3 << 61),
        DWORD | 0x8000,
        DWORD | 0x100,
    ],
)
def test_what_kvm_would_refuse_is_no_root(dword: int) -> None:
    assert pte.partition_root(dword) is None


@given(st.integers(0, (1 << 64) - 1))
def test_a_root_is_aligned_to_its_table(dword: int) -> None:
    root = pte.partition_root(dword)
    assert root is None or (root.bits == 13 and root.table % (8 << 13) == 0)


@given(st.integers(0, (1 << 64) - 1), st.sampled_from((12, 16, 21, 30)))
def test_frames_are_aligned_to_their_page(entry: int, shift: int) -> None:
    frame = pte.frame_of(entry, shift)
    assert frame % (1 << shift) == 0
    assert frame < (1 << 57)
    assert frame_bits(entry, shift) == frame


def frame_bits(entry: int, shift: int) -> int:
    return sum(1 << bit for bit in range(shift, 57) if (entry >> bit) & 1)


def test_descriptions() -> None:
    bits = pte.VALID | pte.LEAF | pte.READ | pte.EXEC | pte.CHANGED
    assert pte.describe(bits | 0x20_0000, 21) == "0x200000 2M R-X-c"
    assert [pte.size_name(shift) for shift in (9, 12, 16, 21, 30)] == [
        "512",
        "4K",
        "64K",
        "2M",
        "1G",
    ]
