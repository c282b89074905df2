"""Which physical addresses of a QEMU machine are RAM.

QEMU's stub returns zeros for addresses where there is nothing, so the map that
it prints for ``info mtree -f`` is consulted before every read.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from inspector.errors import Stage, TargetNotSupported
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges, merged

__all__ = ["Block", "RamMap", "large_blocks", "parse_mtree"]

LARGE = 1 << 26
"""Bytes; no machine that runs Linux has its memory in smaller blocks."""

END_LIMIT = 1 << 60
"""The end of the physical addresses that can be; every POWER processor has fewer bits."""

_LINE = re.compile(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([\w-]+)\): (.*?)(?: @([0-9a-f]{16}))?\s*$"
)
"""A line of a flat view: its first and last address, its kind, its region, the offset in that."""
_BLOCK = re.compile(
    r"^ *(\S+) +\d+ \w+ +0x[0-9a-f]+ +0x([0-9a-f]+) +0x[0-9a-f]+ +0x([0-9a-f]+) +r[wo]\s*?$", re.M
)
_SPACE = re.compile(r'^ AS "(memory)"')


class Block(NamedTuple):
    """A block of RAM in QEMU: its name, its size in bytes, and its address in QEMU's own memory."""

    name: str
    size: int
    hva: int


class RamMap(NamedTuple):
    """Where a machine has RAM.

    ``ram`` are the ranges of physical addresses.  ``pieces`` divide them: each
    is a part of one of QEMU's blocks, and so lies in one place of QEMU's own
    memory.  Two pieces that touch may belong to different blocks (NUMA cells,
    DIMMs), whose places have nothing to do with each other.
    """

    ram: Ranges
    pieces: Ranges


def large_blocks(text: str) -> list[Block]:
    """Return the blocks in ``info ramblock`` that could be a kernel's memory.

    The others belong to firmware and devices.  The output of a version of QEMU
    that prints no addresses has none.
    """
    blocks = (Block(m[1], int(m[2], 16), int(m[3], 16)) for m in _BLOCK.finditer(text))
    return [block for block in blocks if block.size >= LARGE]


def parse_mtree(text: str) -> RamMap:
    """Read where the system address space has RAM out of ``info mtree -f``.

    ROM, devices and regions of other kinds are no RAM.

    Raises:
        TargetNotSupported: the text shows no RAM, so this is not QEMU's output.
    """
    pieces: list[tuple[int, int]] = []
    last = ("", 0)
    in_system = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            in_system = False
        elif _SPACE.match(line):
            in_system = True
        elif in_system and (match := _LINE.match(line)) and match[3] == "ram":
            begin, end = int(match[1], 16), int(match[2], 16) + 1
            region, offset = match[4], int(match[5] or "0", 16)
            # one block may be shown in parts, for example where pages of it are logged
            if pieces and pieces[-1][1] == begin and last == (region, offset):
                pieces[-1] = (pieces[-1][0], end)
            else:
                pieces.append((begin, end))
            last = (region, offset + end - begin)
    if not pieces or not all(begin < end <= END_LIMIT for begin, end in pieces):
        raise TargetNotSupported(
            "'monitor info mtree -f' shows no RAM; the stub must be QEMU's, for a system emulation",
            Stage.QEMU,
        )
    pieces.sort()
    found = Ranges(
        addresses([begin for begin, _ in pieces]), addresses([end - begin for begin, end in pieces])
    )
    return RamMap(merged(*found), found)
