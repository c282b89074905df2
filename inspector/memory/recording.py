"""Remember every byte that was read, and nothing else.

A live machine is read through a recorder while it stands still.  What was
recorded is then a memory of its own: decoding runs on it after the machine
has gone on, a capture file is made of it, and both see the same bytes.
"""

from __future__ import annotations

import numpy as np

from inspector.memory.base import U64, AddressSpace, Bytes, Records, addresses
from inspector.memory.segments import SegmentedMemory

__all__ = ["RecordingMemory"]


class RecordingMemory:
    """A physical memory that passes reads on and keeps what came back."""

    def __init__(self, inner: AddressSpace) -> None:
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
        records = self._inner.read_many(where, length)
        self._where.append(where[records.present])
        self._data.append(records.data[records.present])
        return records

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
        filled = [i for i, data in enumerate(self._data) if data.size]
        if not filled:
            empty = addresses([])
            return SegmentedMemory(np.zeros(0, np.uint8), empty, empty, empty)
        starts = np.concatenate([self._where[i] for i in filled])
        sizes = np.concatenate(
            [np.full(len(self._data[i]), self._data[i].shape[1], np.uint64) for i in filled]
        )
        raw = np.concatenate([self._data[i].reshape(-1) for i in filled])
        offsets = np.concatenate((addresses([0]), np.cumsum(sizes, dtype=np.uint64)[:-1]))
        return _merged(raw, starts, sizes, offsets)


def _merged(raw: Bytes, starts: U64, sizes: U64, offsets: U64) -> SegmentedMemory:
    """Sort records by address, join those that touch or overlap, and copy the bytes."""
    order = np.lexsort((-sizes.astype(np.int64), starts))
    starts, sizes, offsets = starts[order], sizes[order], offsets[order]
    reach = np.maximum.accumulate(starts + sizes)
    begins = np.concatenate(([True], starts[1:] > reach[:-1]))
    group = np.cumsum(begins) - 1
    base = starts[begins]
    last = np.concatenate((np.flatnonzero(begins)[1:] - 1, [starts.size - 1]))
    length = reach[last] - base
    place = np.concatenate((addresses([0]), np.cumsum(length, dtype=np.uint64)))
    buffer = np.empty(int(place[-1]), dtype=np.uint8)
    target = place[group] + (starts - base[group])
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        span = np.arange(int(size), dtype=np.int64)
        step = max(1, (1 << 22) // max(1, int(size)))
        for begin in range(0, rows.size, step):
            part = rows[begin : begin + step]
            into = target[part].astype(np.int64)[:, None] + span
            buffer[into] = raw[offsets[part].astype(np.int64)[:, None] + span]
    buffer.setflags(write=False)
    return SegmentedMemory(buffer, base, length, place[:-1])
