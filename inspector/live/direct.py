"""Bytes read straight out of the memory of a QEMU process on this host.

QEMU says at which of its own addresses guest RAM lies (``gpa2hva``).  The
bytes are then copied with ``process_vm_readv``, about a thousand records with
one system call.  This system call can only read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inspector.errors import (
    InspectorError,
    MemoryNotReadable,
    TargetLost,
    TargetNotSupported,
    shown,
)
from inspector.live.mtree import RamMap
from inspector.memory.interface import Records, read_one
from inspector.memory.numbers import U64, Bytes
from inspector.memory.ranges import Ranges
from inspector.memory.reads import WORD, RecordingMemory
from inspector.memory.segments import SegmentedMemory

__all__ = ["Copier", "DirectMemory", "hva_of", "see_that_it_is_qemu"]

IOV_MAX = 1024
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
"""A line of /proc/PID/maps: where a mapping begins and ends, its rights, and its file."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t


class DirectMemory:
    """The physical memory of a QEMU machine, read from its process.

    Args:
        pid: the QEMU process.
        ram: where RAM is in physical addresses, and the pieces of it.
        hva: address in the QEMU process of the first byte of each piece.
    """

    name = "physical"

    def __init__(self, pid: int, ram: RamMap, hva: U64) -> None:
        self.pid = pid
        self.ram = ram.ram
        self._pieces = ram.pieces
        self._hva = hva

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        return read_one(self, address, length)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        present = self.ram.cover(where, length)
        chosen = where[present]
        data = np.zeros((where.size, length), dtype=np.uint8)
        if chosen.size:
            target = (
                data if chosen.size == where.size else np.empty((chosen.size, length), np.uint8)
            )
            self._gather(self._vectors(chosen, np.full(chosen.size, length, np.uint64)), target)
            if target is not data:
                data[present] = target
        return Records(data, present)

    def copier(self, ranges: Ranges) -> Copier:
        """Prepare to copy ranges of RAM."""
        vectors = self._vectors(ranges.starts, ranges.sizes)
        return Copier(ranges, lambda into: self._gather(vectors, into))

    def _vectors(self, starts: U64, sizes: U64) -> U64:
        """Return the (address, length) in the process of each range, in the order of the ranges.

        A range that crosses from one piece to the next has a row for each.
        """
        pieces = self._pieces
        index = np.searchsorted(pieces.starts, starts, side="right") - 1
        room = pieces.starts[index] + pieces.sizes[index] - starts
        remote = self._hva[index] + (starts - pieces.starts[index])
        if (sizes <= room).all():
            return np.ascontiguousarray(np.stack((remote, sizes), axis=1))
        rows = []
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            while size:
                i = int(np.searchsorted(pieces.starts, start, side="right")) - 1
                inside = start - int(pieces.starts[i])
                part = min(size, int(pieces.sizes[i]) - inside)
                rows.append((int(self._hva[i]) + inside, part))
                start, size = start + part, size - part
        return np.array(rows, dtype=np.uint64)

    def _gather(self, vectors: U64, into: Bytes) -> None:
        """Copy the bytes at each (address, length) of the process, one after the other."""
        # A row of ``vectors`` is a struct iovec of the process.  Each call takes up to IOV_MAX of
        # them and fills one local iovec, whose length is their sum.
        lengths = np.add.reduceat(vectors[:, 1], np.arange(0, len(vectors), IOV_MAX))
        local = np.array([into.ctypes.data, 0], dtype=np.uint64)
        for first, length in zip(range(0, len(vectors), IOV_MAX), lengths, strict=True):
            local[1] = length
            copied = _libc.process_vm_readv(
                self.pid,
                ctypes.c_void_p(local.ctypes.data),
                ctypes.c_ulong(1),
                ctypes.c_void_p(vectors.ctypes.data + first * vectors.itemsize * 2),
                ctypes.c_ulong(min(IOV_MAX, len(vectors) - first)),
                ctypes.c_ulong(0),
            )
            if copied != length:
                raise _failure(self.pid, int(vectors[first, 0]), int(length), int(copied))
            local[0] += length


class Copier:
    """Copies the same ranges of memory as fast as possible, and tells which words have changed.

    Args:
        ranges: the ranges, of whole words.
        fill: copies them into a buffer, one after the other.
    """

    def __init__(self, ranges: Ranges, fill: Callable[[Bytes], None]) -> None:
        self.ranges = ranges
        self._fill = fill
        self._buffer = _touched(ranges.total)
        self._kept: Bytes | None = None

    @property
    def memory(self) -> SegmentedMemory:
        """The memory in the buffer, which shows the last copy and each later one up to ``keep``."""
        return SegmentedMemory.of_ranges(self._buffer, self.ranges)

    def departures(self, record: RecordingMemory) -> U64:
        """Return the addresses of the words that differ from the recorded ones."""
        return record.departures(self._buffer, self.ranges)

    def copy(self) -> None:
        """Make a copy."""
        self._fill(self._buffer)

    def keep(self) -> None:
        """Compare further copies with this one."""
        # the buffer of the copy that was kept before is used again
        other = self._kept if self._kept is not None else _touched(self.ranges.total)
        self._kept, self._buffer = self._buffer, other

    def changed(self) -> U64:
        """Return the addresses of the 64-bit words that differ from the copy that was kept."""
        if self._kept is None:
            raise ValueError("no copy was kept")
        words = np.flatnonzero(self._buffer.view(np.uint64) != self._kept.view(np.uint64))
        places = words.astype(np.uint64) * np.uint64(WORD)
        index = np.searchsorted(self.ranges.places, places, side="right") - 1
        found: U64 = self.ranges.starts[index] + (places - self.ranges.places[index])
        return found


def _touched(size: int) -> Bytes:
    """Return a buffer whose pages are allocated, so that a stop has no page faults to wait for."""
    buffer = np.zeros(size, dtype=np.uint8)
    buffer[:: mmap.PAGESIZE] = 1
    return buffer


def see_that_it_is_qemu(pid: int, pieces: Ranges, hva: U64) -> None:
    """Refuse a process that is not QEMU, or that has no memory for RAM where a stub says it is.

    The stub names addresses in the process that has the port.  If that is not
    QEMU, as with a forwarded port, another program's secrets would be read.

    Args:
        pid: the process.
        pieces: the pieces of RAM, as the stub says.
        hva: address in the process of each piece, as the stub says.

    Raises:
        TargetNotSupported: it is not QEMU, or does not have that memory.
    """
    try:
        lines = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines()
    except PermissionError as error:
        raise _forbidden(pid) from error
    except OSError as error:
        raise TargetNotSupported(f"process {pid} cannot be looked at: {error.strerror}") from error
    mappings = [_MAPPING.match(line) for line in lines]
    found = [mapping for mapping in mappings if mapping is not None]
    programs = (mapping[4].rpartition("/")[2] for mapping in found if "x" in mapping[3])
    if not any("qemu" in program for program in programs):
        raise TargetNotSupported(f"process {pid} is not QEMU (a forwarded port?)")
    # The mappings are in the order of their addresses: ``at`` moves over those that follow each
    # other without a gap.
    writable = [(int(m[1], 16), int(m[2], 16)) for m in found if m[3].startswith("rw")]
    for start, size in zip(hva.tolist(), pieces.sizes.tolist(), strict=True):
        at = start
        for begin, end in writable:
            if begin <= at < end:
                at = end
        if at < start + size:
            raise TargetNotSupported(
                f"QEMU process {pid} has no {size} bytes of memory at {start:#x}, where its stub "
                "says that RAM is"
            )


def _forbidden(pid: int) -> TargetNotSupported:
    return TargetNotSupported(
        f"no permission to read the memory of the QEMU process {pid}; run as root or as its "
        "user with kernel.yama.ptrace_scope=0, or use --read-path gdb"
    )


def _failure(pid: int, address: int, length: int, copied: int) -> InspectorError:
    """Return the error of a copy; ``copied`` are the bytes that were copied, -1 for none at all."""
    if copied >= 0:
        # the kernel reports no error after the first page that it could copy
        reason = f"process {pid} has {copied} of these bytes, the rest is not mapped there"
        return MemoryNotReadable(address, length, reason, "QEMU process")
    number = ctypes.get_errno()
    if number == errno.EPERM:
        return _forbidden(pid)
    if number == errno.ESRCH:
        return TargetLost(f"the machine's QEMU, process {pid}, has ended")
    return MemoryNotReadable(
        address, length, f"process {pid}: {os.strerror(number)}", "QEMU process"
    )


def hva_of(text: str) -> int:
    """Return the address in QEMU's own memory that an answer to ``gpa2hva`` gives.

    Raises:
        TargetNotSupported: the answer gives no address.
    """
    last = text.strip().rsplit(" ", 1)[-1]
    try:
        address = int(last, 16)
        if not 0 <= address < (1 << 64):
            raise ValueError("no address")
        return address
    except ValueError as error:
        raise TargetNotSupported(f"QEMU did not answer 'gpa2hva': {shown(text.strip())}") from error
