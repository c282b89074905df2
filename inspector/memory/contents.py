"""Where the bytes of memory are kept: in an array, or in a file.

A file is read piece by piece when bytes of it are asked for, and not mapped.
The access to a mapping of a file that somebody cuts short ends the process by
SIGBUS, and a /proc/kcore cannot be mapped at all.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inspector.errors import InspectorError
from inspector.memory.arrays import distinct
from inspector.memory.base import U64, Bytes, addresses

__all__ = ["BytesLost", "Contents", "FileContents", "HeldContents"]

SHRUNK = "no longer in the file, which was cut off while it was read"

BLOCK_SHIFT = 12
"""Records that lie scattered in a file are read in blocks of this size."""
GAP = 4
"""Blocks that are read in vain rather than asked for what lies before and after by itself."""
BATCH = 1 << 12
"""So many scattered records are read at once; each may lie in two blocks of its own."""
FEW = 16
"""So many pieces are read one by one, straight to where they belong."""
PIECES_LIMIT = 1 << 30
"""Linux reads no more than 2 GiB at once."""
GATHER_LIMIT = 1 << 12
"""Records up to this many bytes are gathered by one NumPy index."""


class BytesLost(InspectorError):  # noqa: N818
    """Bytes that were there when the file was opened cannot be read; the text says why."""


class Contents(Protocol):
    """Bytes by their position, from 0 on."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, position: int, length: int) -> bytes:
        """Return some bytes, all of which lie before the end.

        Raises:
            BytesLost: they cannot be read any more.
        """

    def gather(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Fill each row of ``into`` with the bytes at its position; say which rows were read."""


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


class FileContents:
    """Bytes of an open file.

    Args:
        descriptor: the file; it is closed when nothing needs its bytes any more.
        size: where it ends.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
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
        """Fill each row with the bytes at its position, neighbours with one call."""
        rows, length = into.shape
        if not into.size:
            return np.ones(rows, dtype=np.bool_)
        follows = positions[1:] - positions[:-1] == np.uint64(length)
        begins = (
            np.flatnonzero(np.concatenate(([True], ~follows)))
            if rows
            else np.zeros(0, dtype=np.int64)
        )
        if begins.size <= FEW or length > GATHER_LIMIT:
            return self._runs(positions, begins, into)
        there = np.zeros(rows, dtype=np.bool_)
        order = np.argsort(positions, kind="stable")
        for begin in range(0, rows, BATCH):
            chosen = order[begin : begin + BATCH]
            piece = np.zeros((chosen.size, length), dtype=np.uint8)
            there[chosen] = self._scattered(positions[chosen], piece)
            into[chosen] = piece
        return there

    def _runs(self, positions: U64, begins: NDArray[np.intp], into: Bytes) -> NDArray[np.bool_]:
        """Read rows that follow each other in the file, too, straight to where they belong."""
        rows, length = into.shape
        there = np.zeros(rows, dtype=np.bool_)
        flat = into.reshape(-1)
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), rows], strict=True):
            room = flat[begin * length : end * length]
            got = self._fill(int(positions[begin]), room)
            whole = got // length
            there[begin : begin + whole] = True
            room[whole * length :] = 0
        return there

    def _scattered(self, positions: U64, into: Bytes) -> NDArray[np.bool_]:
        """Read the blocks in which the rows lie, a row of the file's order each, and pick them."""
        length = into.shape[1]
        first = positions >> np.uint64(BLOCK_SHIFT)
        last = positions + np.uint64(length - 1) >> np.uint64(BLOCK_SHIFT)
        blocks = distinct(np.concatenate((first, last)))
        # Where a run of blocks begins and ends, in blocks; what lies between two is not needed.
        apart = np.flatnonzero(blocks[1:] - blocks[:-1] > np.uint64(GAP))
        starts = blocks[np.concatenate(([0], apart + 1))]
        ends = blocks[np.concatenate((apart, [blocks.size - 1]))] + np.uint64(1)
        size = np.uint64(BLOCK_SHIFT)
        froms, tos = starts << size, np.minimum(ends << size, addresses(self._size))
        places = np.concatenate(([0], np.cumsum(tos - froms, dtype=np.uint64)))
        held = np.zeros(int(places[-1]), dtype=np.uint8)
        got = np.zeros(starts.size, dtype=np.uint64)
        for row, (at, begin, end) in enumerate(
            zip(froms.tolist(), places[:-1].tolist(), places[1:].tolist(), strict=True)
        ):
            got[row] = self._fill(at, held[int(begin) : int(end)])
        run = np.searchsorted(starts, first, side="right") - 1
        inside = positions - froms[run]
        there: NDArray[np.bool_] = inside + np.uint64(length) <= got[run]
        _pick(held, (places[run].astype(np.uint64) + inside).astype(np.int64), into)
        into[~there] = 0
        return there

    def _fill(self, position: int, room: Bytes) -> int:
        """Read until there is no room left; return how many bytes could be read."""
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
    length = into.shape[1]
    if 0 < length <= GATHER_LIMIT and buffer.size >= length:
        windows = np.lib.stride_tricks.sliding_window_view(buffer, length)
        into[:] = windows[positions]
        return
    for row, position in enumerate(positions.tolist()):
        into[row] = buffer[position : position + length]


def _is_run(positions: U64, length: int) -> bool:
    return bool(np.all(positions[1:] - positions[:-1] == np.uint64(length)))


def _unreadable(error: OSError) -> str:
    return f"not readable in the file ({error.strerror})"
