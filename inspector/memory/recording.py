"""Remember every byte that was read, and nothing else.

A live machine is read through a recorder while it stands still.  What was
recorded is then a memory of its own: decoding runs on it after the machine
has gone on, a capture file is made of it, and both see the same bytes.
"""

from __future__ import annotations

import numpy as np

from inspector.memory.base import U64, AddressSpace, Bytes, PhysicalMemory, Records, addresses
from inspector.memory.ranges import Ranges, merged
from inspector.memory.segments import SegmentedMemory

__all__ = ["RecordingMemory"]

LONG = 1 << 10
"""Records of so many bytes are put in place one by one."""


class RecordingMemory:
    """A physical memory that passes reads on and keeps what came back."""

    def __init__(self, inner: PhysicalMemory) -> None:
        self.name = inner.name
        self._inner = inner
        self._where: list[U64] = []
        self._data: list[Bytes] = []

    def read(self, address: int, length: int) -> bytes:
        """Return and record ``length`` bytes at a physical address."""
        piece = self._inner.read(address, length)
        self._where.append(addresses([address]))
        self._data.append(np.frombuffer(piece, dtype=np.uint8).reshape(1, length))
        return piece

    def read_many(self, where: U64, length: int) -> Records:
        """Return and record ``length`` bytes at each physical address."""
        data, present = records = self._inner.read_many(where, length)
        if not present.all():
            where, data = where[present], data[present]
        if data.size:
            self._where.append(where)
            self._data.append(data)
        return records

    @property
    def ram(self) -> Ranges | None:
        """Where the machine has memory, None where that is not known."""
        return self._inner.ram

    @property
    def unrecorded(self) -> AddressSpace:
        """The memory itself, for who looks where it may not have to read."""
        return self._inner

    def ranges(self) -> Ranges:
        """Return where what was read lies."""
        return merged(*self._records())

    @classmethod
    def joined(cls, *recorders: RecordingMemory) -> SegmentedMemory:
        """Return what several recorders hold, as one memory."""
        whole = cls(recorders[0]._inner)
        for recorder in recorders:
            whole._where += recorder._where
            whole._data += recorder._data
        return whole.freeze()

    def freeze(self) -> SegmentedMemory:
        """Return the recorded bytes as an immutable memory of merged segments."""
        starts, sizes = self._records()
        ranges = merged(starts, sizes)
        buffer = np.empty(ranges.total, dtype=np.uint8)
        group = np.searchsorted(ranges.starts, starts, side="right") - 1
        target = (ranges.places[group] + (starts - ranges.starts[group])).astype(np.int64)
        first = 0
        for data in self._data:
            count, length = data.shape
            into = target[first : first + count]
            first += count
            if length >= LONG or count == 1:
                for row, place in zip(data, into, strict=True):
                    buffer[place : place + length] = row
            else:
                buffer[into[:, None] + np.arange(length)] = data
        buffer.setflags(write=False)
        return SegmentedMemory.of_ranges(buffer, ranges, self.ram)

    def _records(self) -> tuple[U64, U64]:
        if not self._where:
            return addresses([]), addresses([])
        sizes = [np.full(len(data), data.shape[1], np.uint64) for data in self._data]
        return np.concatenate(self._where), np.concatenate(sizes)
