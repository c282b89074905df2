"""Where the bytes of memory are kept: in an array, or in a file.

A file is read piece by piece when its bytes are needed; it is not mapped.  If
a mapped file is truncated, an access beyond its new end kills the process with
SIGBUS, and /proc/kcore cannot be mapped at all.
"""

from __future__ import annotations

import os
import weakref
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import InspectorError
from inspector.memory.arrays import distinct
from inspector.memory.numbers import U64, Bytes

__all__ = ["BytesLost", "Contents", "FileContents", "HeldContents"]

SHRUNK = "no longer in the file, which was cut off while it was read"

BLOCK_SHIFT = 12
"""log2 of the size in bytes of the blocks in which scattered records of a file are read."""
GAP = 4
"""Blocks whose numbers differ by this much are still read at once, with the blocks between."""
BATCH = 1 << 12
"""Scattered records that are read at once; each may lie in two blocks of its own."""
WIDE_SHIFT = 4
"""log2 of the number of blocks read for one that is needed: the next read may need a neighbour."""
WIDE_LIMIT = 1 << 22
"""Bytes up to which these neighbours are read, too."""
RECENT_LIMIT = 1 << 24
"""Bytes of blocks that are kept for the next read."""
FEW = 16
"""Up to this many runs of records are read one by one, directly to where they belong."""
PIECES_LIMIT = 1 << 30
"""Bytes that one system call reads; Linux reads no more than 2 GiB at once."""
GATHER_LIMIT = 1 << 12
"""Records of up to this many bytes are gathered by one NumPy index."""


class BytesLost(InspectorError):  # noqa: N818
    """Bytes that were there when the file was opened cannot be read; the message says why."""


class Contents(Protocol):
    """Bytes by their position, from 0 on."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, position: int, length: int) -> bytes:
        """Return ``length`` bytes from a position on, all of which lie before the end.

        Raises:
            BytesLost: they cannot be read any more.
        """

    def gather(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Fill each row of ``into`` with the bytes at its position; return which were read."""


class HeldContents:
    """Bytes that are in memory."""

    def __init__(self, buffer: Bytes) -> None:
        self._buffer = buffer

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._buffer.size

    def read(self, position: int, length: int) -> bytes:
        """Return some bytes."""
        return self._buffer[position : position + length].tobytes()

    def gather(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Fill each row with the bytes at its position."""
        rows, length = into.shape
        if not into.size:
            return np.ones(rows, dtype=np.bool_)
        if _is_run(positions, length):
            first = int(positions[0])
            into[:] = self._buffer[first : first + rows * length].reshape(rows, length)
        else:
            _pick(self._buffer, positions.astype(np.int64), into)
        return np.ones(rows, dtype=np.bool_)


class _Runs(NamedTuple):
    """Runs of blocks that were read; row i of each array but ``held`` describes run i.

    The run has the blocks from number ``starts[i]`` up to, but not including,
    ``ends[i]``.  Its bytes begin at ``places[i]`` in ``held``, and the first
    ``got[i]`` of them could be read.
    """

    starts: U64
    ends: U64
    places: U64
    got: U64
    held: Bytes

    def have(self, first: U64, last: U64) -> bool:
        """Say whether for each record all blocks, from its first to its last, are in one run."""
        run = np.searchsorted(self.starts, first, side="right") - 1
        return bool(np.all((run >= 0) & (last < self.ends[run])))


class FileContents:
    """Bytes of an open file.

    Args:
        descriptor: the file; it is closed when this object is no longer used.
        size: its size in bytes.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._recent: _Runs | None = None
        weakref.finalize(self, os.close, descriptor)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._size

    def read(self, position: int, length: int) -> bytes:
        """Return some bytes."""
        pieces = []
        try:
            while length > 0:
                piece = os.pread(self._descriptor, min(length, PIECES_LIMIT), position)
                if not piece:
                    raise BytesLost(SHRUNK)
                pieces.append(piece)
                position += len(piece)
                length -= len(piece)
        except OSError as error:
            raise BytesLost(_unreadable(error)) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def gather(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Fill each row with the bytes at its position; one call reads a run of neighbours."""
        rows, length = into.shape
        if not into.size:
            return np.ones(rows, dtype=np.bool_)
        # ``begins`` has the first row of each run of rows that also follow each other in the file
        follows = positions[1:] - positions[:-1] == np.uint64(length)
        begins = (
            np.flatnonzero(np.concatenate(([True], ~follows)))
            if rows
            else np.zeros(0, dtype=np.int64)
        )
        if begins.size <= FEW or length > GATHER_LIMIT:
            return self._runs(positions, begins, into)
        there = np.zeros(rows, dtype=np.bool_)
        # in the order of the file, so that a batch needs as few blocks as possible
        order = np.argsort(positions, kind="stable")
        for begin in range(0, rows, BATCH):
            chosen = order[begin : begin + BATCH]
            piece = np.zeros((chosen.size, length), dtype=np.uint8)
            there[chosen] = self._scattered(positions[chosen], piece)
            into[chosen] = piece
        return there

    def _runs(self, positions: U64, begins: NDArray[np.intp], into: Bytes) -> NDArray[np.bool_]:
        """Read each run of rows that follow each other in the file directly into ``into``."""
        rows, length = into.shape
        there = np.zeros(rows, dtype=np.bool_)
        flat = into.reshape(-1)
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), rows], strict=True):
            room = flat[begin * length : end * length]
            got = self._fill(int(positions[begin]), room)
            # of a run that is cut off, only whole rows count as read
            whole = got // length
            there[begin : begin + whole] = True
            room[whole * length :] = 0
        return there

    def _scattered(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Read the blocks in which the records lie, and pick the records out of them.

        The blocks are kept for the next call: the readers follow many lists
        at once, one node of each per call, and the next node of a list is
        mostly in the same block.
        """
        length = into.shape[1]
        first = positions >> np.uint64(BLOCK_SHIFT)
        last = (positions + np.uint64(length - 1)) >> np.uint64(BLOCK_SHIFT)
        runs = self._recent
        if runs is None or not runs.have(first, last):
            runs = self._read_runs(distinct(np.concatenate((first, last))))
            self._recent = runs if runs.held.size <= RECENT_LIMIT else None
        # for each record: the run that has it, and where it begins in that run
        run = np.searchsorted(runs.starts, first, side="right") - 1
        inside = positions - (runs.starts[run] << np.uint64(BLOCK_SHIFT))
        there: NDArray[np.bool_] = inside + np.uint64(length) <= runs.got[run]
        _pick(runs.held, (runs.places[run] + inside).astype(np.int64), into)
        into[~there] = 0
        return there

    def _read_runs(self, blocks: U64) -> _Runs:
        """Read blocks, given in ascending order, and their neighbours if they are not too many."""
        wide = distinct(blocks >> np.uint64(WIDE_SHIFT))
        if (wide.size << (WIDE_SHIFT + BLOCK_SHIFT)) <= WIDE_LIMIT:
            around = np.arange(1 << WIDE_SHIFT, dtype=np.uint64)
            blocks = ((wide << np.uint64(WIDE_SHIFT))[:, None] + around).reshape(-1)
        # a run ends where the next block is far away: ``apart`` has the last block of each run
        apart = np.flatnonzero(blocks[1:] - blocks[:-1] > np.uint64(GAP))
        starts = blocks[np.concatenate(([0], apart + 1))]
        ends = blocks[np.concatenate((apart, [blocks.size - 1]))] + np.uint64(1)
        sizes = (ends - starts) << np.uint64(BLOCK_SHIFT)
        places = np.cumsum(sizes, dtype=np.uint64) - sizes
        held = np.zeros(int(sizes.sum()), dtype=np.uint8)
        got = np.zeros(starts.size, dtype=np.uint64)
        rows = zip(starts.tolist(), places.tolist(), sizes.tolist(), strict=True)
        for row, (start, place, size) in enumerate(rows):
            got[row] = self._fill(start << BLOCK_SHIFT, held[place : place + size])
        return _Runs(starts, ends, places, got, held)

    def _fill(self, position: int, room: Bytes) -> int:
        """Fill the room with bytes from a position on; return how many could be read."""
        done = 0
        try:
            while done < room.size:
                piece = room[done : done + PIECES_LIMIT].data
                count = os.preadv(self._descriptor, [piece], position + done)
                if count <= 0:
                    break
                done += count
        except OSError:
            return done
        return done


def _pick(buffer: Bytes, positions: NDArray[np.int64], into: Bytes) -> None:
    """Fill each row with the bytes at its position in the buffer."""
    length = into.shape[1]
    if 0 < length <= GATHER_LIMIT and buffer.size >= length:
        # a view that copies nothing: row i has the bytes of the buffer from position i on
        windows = np.lib.stride_tricks.sliding_window_view(buffer, length)
        into[:] = windows[positions]
        return
    for row, position in enumerate(positions.tolist()):
        into[row] = buffer[position : position + length]


def _is_run(positions: U64, length: int) -> bool:
    return bool(np.all(positions[1:] - positions[:-1] == np.uint64(length)))


def _unreadable(error: OSError) -> str:
    return f"not readable in the file ({error.strerror})"
