"""The bytes of a dump file by their position, however the file is wrapped.

A plain file is mapped, so only what is read is touched.  A packed one (this
tool's captures are zstd frames) is unpacked.  The flattened form of makedumpfile, which is
for pipes, is a sequence of records that say where in the file their bytes
belong; an index of the records makes it a file again.
"""

from __future__ import annotations

import mmap
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspector.errors import BadData
from inspector.memory.base import U64, Bytes, addresses
from inspector.memory.packed import AGAIN, is_packed, unpack
from inspector.memory.segments import SegmentedMemory

__all__ = ["AGAIN", "DumpFile", "open_file"]

MAGIC_LENGTH = 6

FLAT_MAGIC = b"makedumpfile\0\0\0\0"
FLAT_HEADER = 4096
FLAT_END = -1
FLAT_TYPE = FLAT_VERSION = 1
POSITION_LIMIT = 1 << 62
HELD_LIMIT = 1 << 26
"""Of a mapped file that is walked through, this much is kept in memory at most."""


@dataclass(frozen=True)
class DumpFile:
    """An opened file: ``contents`` has its bytes, with positions for addresses.

    ``cut`` says how its wrapping is cut off, if it is.
    """

    path: Path
    contents: SegmentedMemory
    flattened: bool = False
    mapped: mmap.mmap | None = None
    cut: str = ""

    @property
    def size(self) -> int:
        """Where the file ends."""
        return self.contents.end

    def holds(self, position: int, length: int) -> bool:
        """Say whether some bytes lie before the end of the file."""
        return position >= 0 and length >= 0 and position + length <= self.size

    def beginning(self, length: int) -> bytes:
        """Return the first bytes, fewer where there are fewer."""
        return self.contents.read(0, min(length, self.size)) if self.contents.has(0) else b""

    def forget(self) -> None:
        """Let go of the memory that holds what was read of a mapped file."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


def open_file(path: Path, *, wrapped: bool = True) -> DumpFile:
    """Open a dump file; with ``wrapped`` false its bytes are taken as they are.

    Raises:
        BadData: the file cannot be read, is empty, or its wrapping is
            damaged or truncated.
    """
    mapped = None
    try:
        with path.open("rb") as file:
            magic = file.read(MAGIC_LENGTH)
            if not magic:
                raise BadData(f"{path} is empty; give a dump or a capture of the KVM-HV host")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            buffer = np.frombuffer(mapped, dtype=np.uint8)
            if wrapped and is_packed(magic):
                buffer, mapped = np.frombuffer(unpack(path, buffer.data), dtype=np.uint8), None
    except OSError as error:
        raise BadData(f"cannot open {path}: {error.strerror}; {_remedy(error)}") from error
    except ValueError as error:
        raise BadData(f"{path} has no size to map it by; copy it to a file first") from error
    if wrapped and buffer[: len(FLAT_MAGIC)].tobytes() == FLAT_MAGIC:
        contents, cut = _unflattened(path, buffer, mapped)
        return DumpFile(path, contents, True, mapped, cut)
    size = addresses([buffer.size])
    return DumpFile(path, SegmentedMemory(buffer, size * 0, size, size * 0), mapped=mapped)


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "run as a user who may read it"
    return "give the name of a dump or a capture"


def _unflattened(
    path: Path, buffer: Bytes, mapped: mmap.mmap | None
) -> tuple[SegmentedMemory, str]:
    """Return the file that was flattened, and how it is cut off if it is."""
    record = struct.Struct(">qq")
    starts, sizes, offsets = array("Q"), array("Q"), array("Q")
    view = buffer.data
    end = buffer.size
    place = FLAT_HEADER
    held = place
    if end >= 32 and record.unpack_from(view, 16) != (FLAT_TYPE, FLAT_VERSION):
        raise BadData(f"{path} has a flattened form that is not known; try 'makedumpfile -R'")
    if mapped is not None:
        # Otherwise the kernel reads all that lies between the records, too.
        mapped.madvise(mmap.MADV_RANDOM)
    cut = ""
    while not cut:
        if place + record.size > end:
            cut = f"{path} is cut off: its flattened form has no end"
            break
        position, size = record.unpack_from(view, place)
        if position == FLAT_END:
            break
        place += record.size
        if mapped is not None and place - held > HELD_LIMIT:
            mapped.madvise(mmap.MADV_DONTNEED)
            held = place
        if not (0 <= position < POSITION_LIMIT and 0 <= size < POSITION_LIMIT):
            raise BadData(f"{path} is damaged: a record of its flattened form cannot be; {AGAIN}")
        if size > end - place:
            cut = f"{path} is cut off within a record of its flattened form"
            size = end - place
        if size:
            starts.append(position)
            sizes.append(size)
            offsets.append(place)
        place += size
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
        mapped.madvise(mmap.MADV_NORMAL)
    pieces = _latest(*(addresses(a) for a in (starts, sizes, offsets)))
    return SegmentedMemory(buffer, *pieces), cut


def _latest(starts: U64, sizes: U64, offsets: U64) -> tuple[U64, U64, U64]:
    """Cut records that overlap, so that of each byte the one written last remains."""
    order = np.argsort(starts, kind="stable")
    if np.all(starts[order][1:] >= (starts + sizes)[order][:-1]):
        return starts, sizes, offsets
    edges = np.unique(np.concatenate((starts, starts + sizes)))
    first = np.searchsorted(edges, starts)
    last = np.searchsorted(edges, starts + sizes)
    owner = np.full(edges.size, -1, dtype=np.int64)
    for index in range(starts.size):
        owner[first[index] : last[index]] = index
    pieces = np.flatnonzero(owner >= 0)
    owner = owner[pieces]
    return (
        edges[pieces],
        edges[pieces + 1] - edges[pieces],
        offsets[owner] + edges[pieces] - starts[owner],
    )
