"""The address that a store has written to."""

from __future__ import annotations

import pytest

from inspector.following.stores import stored_range

REGISTERS = {"r1": 0x7000, "r3": 0x1000, "r4": 0x20, "r9": 0xC000_0000_0000_0010}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("std r9,0(r4)", (0x20, 8)),
        ("std r9,-8(r3)", (0xFF8, 8)),
        ("stdu r1,-64(r1)", (0x7000, 8)),
        ("stw r3,4(r9)", (0xC000_0000_0000_0014, 4)),
        ("sth r3,2(r4)", (0x22, 2)),
        ("stb r0,1(r4)", (0x21, 1)),
        ("stdx r0,r4,r3", (0x1020, 8)),
        ("stdux r0,r3,r4", (0x1000, 8)),
        ("stdcx. r3,0,r9", (0xC000_0000_0000_0010, 8)),
        ("stwcx. r3,r4,r3", (0x1020, 4)),
        ("stxvx vs0,r3,r4", (0x1020, 16)),
        ("stvx v0,0,r3", (0x1000, 16)),
        ("dcbz 0,r3", (0x1000, 128)),
        ("dcbz r4,r3", (0x1000, 128)),
    ],
)
def test_every_form(text: str, expected: tuple[int, int]) -> None:
    assert stored_range(text, REGISTERS.__getitem__) == expected


@pytest.mark.parametrize(
    "text", ["ld r9,0(r4)", "bl 0xc000", "mtdec r3", ".long 0x0", "", f"std r9,{'9' * 5000}(r4)"]
)
def test_what_is_no_store(text: str) -> None:
    assert stored_range(text, REGISTERS.__getitem__) is None


def test_addresses_stay_within_64_bits() -> None:
    top = {"r3": (1 << 64) - 8, "r4": 0x10}
    assert stored_range("stdx r0,r3,r4", top.__getitem__) == (8, 8)
