"""The files of one split kdump-compressed dump (``makedumpfile --split``), read as one.

Every file has the whole header and both bitmaps, and the pages of one range.
The target names all of them: ``split:FILE,FILE,...``, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspector.dumps.file import open_file
from inspector.dumps.kdump import KDUMP_MAGIC, Kdump, KdumpMemory, Layout, read_kdump
from inspector.dumps.packed import copied_again
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.interface import Records
from inspector.memory.numbers import U64, addresses, is_address

__all__ = ["SPLIT_PREFIX", "SplitMemory", "open_split", "what_lacks"]

SPLIT_PREFIX = "split:"


class SplitMemory:
    """The physical memory in the files of a split dump, each of which holds a range of pages."""

    name = "physical"
    ram = None

    def __init__(self, parts: Sequence[Kdump]) -> None:
        self._parts: list[KdumpMemory] = [part.memory for part in parts]
        size = parts[0].layout.page_size
        self._ends = addresses([part.layout.end * size for part in parts[:-1]])

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        pieces = []
        while length > 0:
            if not is_address(address):
                raise MemoryNotReadable(address, length, "it is not an address")
            owner = int(self._owner(addresses([address]))[0])
            here = length
            if owner < self._ends.size:
                here = min(length, int(self._ends[owner]) - address)
            pieces.append(self._parts[owner].read(address, here))
            address += here
            length -= here
        return b"".join(pieces)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        data = np.zeros((where.size, length), dtype=np.uint8)
        present = np.zeros(where.size, dtype=np.bool_)
        # ``within``: the first and the last byte of the record are in the same file
        owner = self._owner(where)
        within = self._owner(where + np.uint64(max(length, 1) - 1)) == owner
        for number, part in enumerate(self._parts):
            rows = np.flatnonzero((owner == number) & within)
            data[rows], present[rows] = part.read_many(where[rows], length)
        for row in np.flatnonzero(~within):
            try:
                data[row] = np.frombuffer(self.read(int(where[row]), length), dtype=np.uint8)
            except MemoryNotReadable:
                continue
            present[row] = True
        return Records(data, present)

    def _owner(self, where: U64) -> NDArray[np.int64]:
        """Return the index of the file in whose range each address is."""
        return np.searchsorted(self._ends, where, side="right").astype(np.int64)


def open_split(target: str) -> tuple[Kdump, SplitMemory, str]:
    """Open the files of a split dump.

    Returns:
        The first file, the memory in all of them, and what is missing: files (see
        ``what_lacks``), or the end of a file.

    Raises:
        BadData: a file cannot be read, or is not one of the same split dump.
        TargetNotSupported: as for ``read_kdump``.
    """
    names = [name for name in target.removeprefix(SPLIT_PREFIX).split(",") if name]
    if len(names) < 2:
        raise BadData(
            f"'{target}' names fewer than two files; give all as {SPLIT_PREFIX}FILE,FILE,..."
        )
    opened = sorted(
        ((_part(Path(name)), name) for name in names), key=lambda item: item[0].layout.first
    )
    (first, first_name), *others = opened
    reached = first
    for part, name in others:
        if part.alike != first.alike:
            raise BadData(f"{name} is not a file of the same split dump as {first_name}")
        if part.layout.first < reached.layout.end:
            raise BadData(
                f"{name} has pages that another file also has, from physical "
                f"{_address(part.layout, part.layout.first)}; give each file once"
            )
        reached = part
    parts = [part for part, _ in opened]
    cut = "; ".join(part.cut for part in parts if part.cut)
    lacks = what_lacks([part.layout for part in parts]) or copied_again(cut)
    return first, SplitMemory(parts), lacks


def _part(path: Path) -> Kdump:
    file = open_file(path)
    if file.beginning(len(KDUMP_MAGIC)) != KDUMP_MAGIC:
        raise BadData(f"{path} is not a kdump-compressed dump, so it is not part of a split one")
    kdump = read_kdump(file)
    if not kdump.layout.split:
        raise BadData(f"{path} is a whole dump, not a file of a split one; give it alone")
    return kdump


def what_lacks(layouts: Sequence[Layout]) -> str:
    """Say which physical addresses are in files of a split dump that were not given, if any.

    Args:
        layouts: those of the files that were given, by their first page.
    """
    ranges: list[str] = []
    reached = 0
    for first, end in (*((one.first, one.end) for one in layouts), (layouts[0].pages,) * 2):
        if first > reached:
            ranges.append(f"{_address(layouts[0], reached)} to {_address(layouts[0], first)}")
        reached = max(reached, end)
    if not ranges:
        return ""
    return (
        f"physical {', '.join(ranges)} is in other files of this split dump; "
        f"give all of them as {SPLIT_PREFIX}FILE,FILE,..."
    )


def _address(layout: Layout, page: int) -> str:
    return f"{page * layout.page_size:#x}"
