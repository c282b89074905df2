"""The bytes of a dump file by their position, however the file is wrapped.

Of a plain file, only the bytes that are asked for are read.  A packed file
(this tool's captures are zstd frames) is unpacked into memory.  The flattened
form of makedumpfile, which is for pipes, is a sequence of records that say
where in the file their bytes belong; an index of the records makes it a file
again.
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspector.dumps.packed import AGAIN, STEP, is_packed, unpack
from inspector.errors import BadData
from inspector.memory.contents import BytesLost, Contents, FileContents, HeldContents
from inspector.memory.numbers import U64, addresses
from inspector.memory.segments import SegmentedMemory
from inspector.storage import Input

__all__ = ["AGAIN", "DumpFile", "open_file"]

MAGIC_LENGTH = 6

FLAT_MAGIC = b"makedumpfile\0\0\0\0"
FLAT_HEADER = 4096
FLAT_END = -1
FLAT_TYPE = FLAT_VERSION = 1
REASSEMBLE = "try 'makedumpfile -R'"
POSITION_LIMIT = 1 << 62
WINDOW = 1 << 16
"""Bytes of a flattened file that are read at once to find the next record."""
RECORDS_LIMIT = 1 << 22
"""Records that a flattened file may have; makedumpfile writes some hundred KiB with each."""
EMPTY_LIMIT = 1 << 16
"""Records without bytes that it may have; makedumpfile writes none."""
OVERLAPS_LIMIT = 1 << 28
"""Assignments that overlapping records may cost; makedumpfile rewrites only its headers."""


@dataclass(frozen=True)
class DumpFile:
    """An opened file: ``contents`` has its bytes, with positions in the file as addresses.

    ``cut`` says how the wrapping of the file is cut off, if it is.
    """

    path: Path
    contents: SegmentedMemory
    flattened: bool = False
    cut: str = ""

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.contents.end

    def holds(self, position: int, length: int) -> bool:
        """Say whether all of these bytes lie before the end of the file."""
        return position >= 0 and length >= 0 and position + length <= self.size

    def beginning(self, length: int) -> bytes:
        """Return the first bytes, fewer if the file is shorter."""
        return self.contents.read(0, min(length, self.size)) if self.contents.has(0) else b""


def open_file(path: Path, *, wrapped: bool = True) -> DumpFile:
    """Open a dump file; with ``wrapped`` false its bytes are taken as they are.

    Raises:
        BadData: the file cannot be read, is empty, or its wrapping is
            damaged or truncated.
    """
    try:
        found = Input(path)
        contents: Contents = FileContents(found.descriptor, found.size)
        if not contents.size:
            if os.pread(found.descriptor, 1, 0):
                raise BadData(f"{path} has bytes but no size; copy it to a file first")
            raise BadData(f"{path} is empty; give a dump or a capture of the KVM-HV host")
        beginning = contents.read(0, min(len(FLAT_MAGIC), contents.size))
        if wrapped and is_packed(beginning):
            packed = unpack(path, _pieces(contents))
            contents, beginning = HeldContents(np.frombuffer(packed, np.uint8)), packed[:16]
    except OSError as error:
        raise BadData(f"cannot open {path}: {error.strerror}; {_remedy(error)}") from error
    except BytesLost as error:
        raise BadData(f"cannot read {path}: its bytes are {error}; {AGAIN}") from error
    if wrapped and beginning == FLAT_MAGIC:
        try:
            unflattened, cut = _unflattened(path, contents)
        except BytesLost as error:
            raise BadData(f"cannot read {path}: its bytes are {error}; {AGAIN}") from error
        return DumpFile(path, unflattened, True, cut)
    size = addresses([contents.size])
    return DumpFile(path, SegmentedMemory(contents, size * 0, size, size * 0))


def _pieces(contents: Contents) -> Iterator[bytes]:
    for position in range(0, contents.size, STEP):
        yield contents.read(position, min(STEP, contents.size - position))


def _remedy(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "run as a user who may read it"
    if error.errno == errno.ESPIPE:
        return "give a dump, or copy it to a file first"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n)"
    return "give the name of a dump or a capture"


def _unflattened(path: Path, contents: Contents) -> tuple[SegmentedMemory, str]:
    """Return the contents of the file that was flattened, and how it is cut off, if it is."""
    # a record: the position of its bytes in the file, and how many of them follow
    record = struct.Struct(">qq")
    # row i is one record: its position in the file, its size, and where its bytes lie in here
    starts, sizes, offsets = array("Q"), array("Q"), array("Q")
    end = contents.size
    if end >= 32 and record.unpack(contents.read(16, 16)) != (FLAT_TYPE, FLAT_VERSION):
        raise BadData(f"{path} is flattened in an unknown form; try 'makedumpfile -R'")
    cut = ""
    place = FLAT_HEADER
    held, begin = b"", 0
    empty = 0
    while not cut:
        if place + record.size > end:
            cut = f"{path} is cut off: its flattened form has no end record"
            break
        if place + record.size > begin + len(held):
            held, begin = contents.read(place, min(WINDOW, end - place)), place
        position, size = record.unpack_from(held, place - begin)
        if position == FLAT_END:
            break
        place += record.size
        if not (0 <= position < POSITION_LIMIT and 0 <= size < POSITION_LIMIT):
            raise BadData(f"{path} is damaged: its flattened form has a bad record; {AGAIN}")
        if size > end - place:
            cut = f"{path} is cut off within a record of its flattened form"
            size = end - place
        if size:
            starts.append(position)
            sizes.append(size)
            offsets.append(place)
        else:
            # A hole in the flattened file reads as zeros, that is as endless empty records.
            empty += 1
        place += size
        if len(starts) > RECORDS_LIMIT or empty > EMPTY_LIMIT:
            raise BadData(f"{path} has too many records in its flattened form; {REASSEMBLE}")
    pieces = _latest(path, *(addresses(a) for a in (starts, sizes, offsets)))
    return SegmentedMemory(contents, *pieces), cut


def _latest(path: Path, starts: U64, sizes: U64, offsets: U64) -> tuple[U64, U64, U64]:
    """Cut records that overlap, so that each byte comes from the record that was written last."""
    order = np.argsort(starts, kind="stable")
    if np.all(starts[order][1:] >= (starts + sizes)[order][:-1]):
        return starts, sizes, offsets
    # Between two neighbouring edges, all bytes belong to the same record: the last one that
    # covers them.  ``owner`` has its index, -1 where no record lies.
    edges = np.unique(np.concatenate((starts, starts + sizes)))
    first = np.searchsorted(edges, starts)
    last = np.searchsorted(edges, starts + sizes)
    if int((last - first).sum()) > OVERLAPS_LIMIT:
        raise BadData(f"{path} is damaged: the records of its flattened form overlap; {REASSEMBLE}")
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
