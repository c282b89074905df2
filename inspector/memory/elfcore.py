"""ELF core files: QEMU's ``dump-guest-memory`` and this tool's own captures.

Only what the ELF specification fixes is used: program headers, their
physical addresses, and notes.  ``EI_DATA`` gives the byte order of the
headers; it says nothing about the kernel (QEMU writes big-endian headers for
a machine that has not started Linux yet).
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from inspector.errors import BadData
from inspector.memory.base import Bytes, addresses
from inspector.memory.segments import SegmentedMemory
from inspector.regions import LINEAR_MAP

__all__ = ["ElfCore", "Note", "open_core", "parse_notes", "write_core"]

ELF_MAGIC = b"\x7fELF"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
ET_CORE = 4
EM_PPC64 = 21
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
UNPACK_STEP = 1 << 12
CAPTURE_LIMIT = 1 << 32
"""A compressed core may unpack to this many bytes; more is taken for a bomb."""

_EHDR = "HHIQQQIHHHHHH"
_SHDR = "IIQQQQIIQQ"
_PHDR = [
    ("type", "u4"),
    ("flags", "u4"),
    ("offset", "u8"),
    ("vaddr", "u8"),
    ("paddr", "u8"),
    ("filesz", "u8"),
    ("memsz", "u8"),
    ("align", "u8"),
]


class Note(NamedTuple):
    """One ELF note."""

    name: str
    type: int
    data: bytes


class ElfCore(NamedTuple):
    """An opened core: its memory and its notes."""

    memory: SegmentedMemory
    notes: tuple[Note, ...]

    def note(self, name: str) -> bytes | None:
        """Return the contents of the first note of this name."""
        return next((note.data for note in self.notes if note.name == name), None)


def open_core(path: Path) -> ElfCore:
    """Open an ELF core, zstd-compressed or not.

    Raises:
        BadData: the file is empty, truncated, or not an ELF core of a
            64-bit POWER machine.
    """
    buffer = _contents(path)
    if bytes(buffer[:4]) != ELF_MAGIC:
        raise BadData(
            f"{path} is not an ELF core file (it begins with {bytes(buffer[:4])!r}); "
            "give a capture of this tool or QEMU's dump-guest-memory output"
        )
    return _parse(path, buffer)


def _contents(path: Path) -> Bytes:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if not magic:
                raise BadData(f"{path} is empty")
            if magic == ZSTD_MAGIC:
                file.seek(0)
                return np.frombuffer(_decompressed(path, file), dtype=np.uint8)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadData(f"cannot open {path}: {error.strerror}") from error
    return np.frombuffer(mapped, dtype=np.uint8)


def _decompressed(path: Path, file: io.BufferedReader) -> bytes:
    import zstandard

    out = io.BytesIO()
    frame = zstandard.ZstdDecompressor().decompressobj()
    try:
        while piece := file.read(UNPACK_STEP):
            while piece:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                out.write(frame.decompress(piece))
                piece = frame.unused_data
            if out.tell() > CAPTURE_LIMIT:
                raise BadData(f"{path} unpacks to more than {CAPTURE_LIMIT >> 30} GiB")
    except zstandard.ZstdError as error:
        raise BadData(f"{path} is damaged: {error}") from error
    if not frame.eof:
        raise BadData(f"{path} is truncated: it ends within its zstd frame")
    return out.getvalue()


def _parse(path: Path, buffer: Bytes) -> ElfCore:
    try:
        byte_order = {1: "<", 2: ">"}[int(buffer[5])]
        if int(buffer[4]) != 2:
            raise BadData(f"{path} is a 32-bit ELF file, not a core of a 64-bit POWER machine")
        header = struct.unpack_from(byte_order + _EHDR, buffer[:64].tobytes(), 16)
        kind, machine, phoff, shoff, phnum = (header[i] for i in (0, 1, 4, 5, 9))
        if kind != ET_CORE or machine != EM_PPC64:
            raise BadData(
                f"{path} is an ELF file of type {kind} for machine {machine}, "
                f"not a core (type {ET_CORE}) of a 64-bit POWER machine ({EM_PPC64})"
            )
        if phnum == PN_XNUM:
            section = struct.unpack_from(byte_order + _SHDR, buffer[shoff : shoff + 64].tobytes())
            phnum = section[7]
        dtype = np.dtype([(name, byte_order + code) for name, code in _PHDR])
        table = buffer[phoff : phoff + phnum * dtype.itemsize]
        headers = np.frombuffer(table.tobytes(), dtype=dtype, count=phnum)
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise BadData(f"{path} is truncated or damaged: its ELF headers do not fit") from error

    loads = headers[(headers["type"] == PT_LOAD) & (headers["filesz"] > 0)]
    offsets = loads["offset"].astype(np.uint64)
    room = np.uint64(buffer.size) - np.minimum(offsets, np.uint64(buffer.size))
    sizes = np.minimum(loads["filesz"].astype(np.uint64), room)
    cut = int(np.count_nonzero(sizes < loads["filesz"]))
    if cut:
        raise BadData(
            f"{path} is truncated: {cut} of its {len(loads)} segments "
            "end beyond the end of the file"
        )
    notes = tuple(
        note
        for entry in headers[headers["type"] == PT_NOTE]
        for note in parse_notes(
            buffer[int(entry["offset"]) : int(entry["offset"]) + int(entry["filesz"])].tobytes(),
            byte_order,
        )
    )
    memory = SegmentedMemory(buffer, loads["paddr"].astype(np.uint64), sizes, offsets)
    return ElfCore(memory, notes)


def parse_notes(data: bytes, byte_order: str) -> Iterable[Note]:
    """Yield the notes in the contents of a note segment or section."""
    position = 0
    while position + 12 <= len(data):
        name_size, size, kind = struct.unpack_from(byte_order + "III", data, position)
        position += 12
        name = data[position : position + name_size].rstrip(b"\0").decode("ascii", "replace")
        position += name_size + 3 & ~3
        yield Note(name, kind, data[position : position + size])
        position += size + 3 & ~3


def write_core(memory: SegmentedMemory, notes: Iterable[Note], byte_order: str) -> bytes:
    """Return an uncompressed ELF core that holds these segments and notes.

    ``p_paddr`` is the physical address and ``p_vaddr`` the same place in the
    kernel's linear map, as in the kernel's own vmcore.
    """
    packed = b"".join(_packed(note, byte_order) for note in notes)
    segments = memory.starts.size
    phnum = segments + 1
    extended = phnum >= PN_XNUM
    shoff = 64 if extended else 0
    phoff = 64 + (64 if extended else 0)
    note_offset = phoff + phnum * 56
    data_offset = note_offset + len(packed) + 7 & ~7

    ident = ELF_MAGIC + bytes([2, 1 if byte_order == "<" else 2, 1]) + bytes(9)
    ehdr = ident + struct.pack(
        byte_order + _EHDR,
        ET_CORE,
        EM_PPC64,
        1,
        0,
        phoff,
        shoff,
        0,
        64,
        56,
        min(phnum, PN_XNUM),
        64 if extended else 0,
        1 if extended else 0,
        0,
    )
    shdr = struct.pack(byte_order + _SHDR, 0, 0, 0, 0, 0, 0, 0, phnum, 0, 0) if extended else b""

    headers = np.zeros(phnum, dtype=[(name, byte_order + code) for name, code in _PHDR])
    headers[0] = (PT_NOTE, 0, note_offset, 0, 0, len(packed), 0, 4)
    loads = headers[1:]
    loads["type"] = PT_LOAD
    loads["flags"] = 4
    loads["paddr"] = memory.starts
    loads["vaddr"] = memory.starts | np.uint64(LINEAR_MAP)
    loads["filesz"] = loads["memsz"] = memory.sizes
    ends = np.cumsum(memory.sizes, dtype=np.uint64)
    loads["offset"] = addresses(data_offset) + ends - memory.sizes
    body = b"".join(
        memory.read(int(start), int(size))
        for start, size in zip(memory.starts, memory.sizes, strict=True)
    )
    padding = bytes(data_offset - note_offset - len(packed))
    return ehdr + shdr + headers.tobytes() + packed + padding + body


def _packed(note: Note, byte_order: str) -> bytes:
    name = note.name.encode("ascii") + b"\0"
    return (
        struct.pack(byte_order + "III", len(name), len(note.data), note.type)
        + name
        + bytes(-len(name) % 4)
        + note.data
        + bytes(-len(note.data) % 4)
    )
