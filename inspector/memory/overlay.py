"""A copy of parts of a memory, laid over the memory itself."""

from __future__ import annotations

import contextlib

import numpy as np

from inspector.errors import MemoryNotReadable
from inspector.memory.interface import PhysicalMemory, Records, read_one
from inspector.memory.numbers import U64
from inspector.memory.ranges import Ranges
from inspector.memory.segments import SegmentedMemory

__all__ = ["Overlay"]


class Overlay:
    """Reads from a copy where it has the bytes, and elsewhere from the memory it was made of.

    ``missed`` tells whether a record was read that is not in the copy.  Such
    a record may have changed after the copy was made.
    """

    name = "physical"

    def __init__(self, copy: SegmentedMemory, below: PhysicalMemory) -> None:
        self._copy = copy
        self._below = below
        self.missed = False

    @property
    def ram(self) -> Ranges | None:
        """Where the machine has memory."""
        return self._below.ram

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        with contextlib.suppress(MemoryNotReadable):
            return self._copy.read(address, length)
        return read_one(self, address, length)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        data, present = records = self._copy.read_many(where, length)
        if present.all():
            return records
        absent = np.flatnonzero(~present)
        found = self._below.read_many(where[absent], length)
        self.missed |= bool(found.present.any())
        data[absent] = found.data
        present[absent] = found.present
        return Records(data, present)
