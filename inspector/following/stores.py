"""The bytes that a store wrote, from GDB's text of the instruction (Power ISA, book I, 3.3.3).

There are three kinds of operands: ``d(rA)``, ``rA,rB`` and, for dcbz, a whole
block.  After an update form, rA already holds the address.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["stored_range"]

WIDTHS = (("stb", 1), ("sth", 2), ("stw", 4), ("std", 8))
VECTOR = 16
"""The most bytes that any other store writes; a shorter one is taken to write so many."""
BLOCK = 128
"""Bytes that dcbz sets to zero, on every POWER since 4."""
_DISPLACED = re.compile(r"(st\w+) +\w+,(-?\d{1,6})\((r\d+)\)")
_INDEXED = re.compile(r"((?:st|dcbz)\w*\.?) +(?:\w+,)?(r\d+|0),(r\d+)")


def stored_range(text: str, register: Callable[[str], int]) -> tuple[int, int] | None:
    """Return address and length of what a store wrote, None if the text is no known store.

    Args:
        text: GDB's text of the instruction, for example ``std r9,0(r4)``.
        register: gives a register's value after the store.
    """
    if match := _DISPLACED.fullmatch(text):
        mnemonic, displacement, base = match.groups()
        address = register(base) + (0 if mnemonic.endswith("u") else int(displacement))
    elif match := _INDEXED.fullmatch(text):
        mnemonic, base, index = match.groups()
        address = 0 if base == "0" else register(base)
        if not mnemonic.rstrip(".").endswith("ux"):
            address += register(index)
    else:
        return None
    address &= (1 << 64) - 1
    if mnemonic == "dcbz":
        return address - address % BLOCK, BLOCK
    return address, next((n for name, n in WIDTHS if mnemonic.startswith(name)), VECTOR)
