"""ELF core files: QEMU's ``dump-guest-memory``, kdump's vmcore, this tool's own captures.

The reader uses only what the ELF specification fixes: program headers, their
physical addresses, and notes.  ``EI_DATA`` gives the byte order of the
headers; it says nothing about the kernel (QEMU writes big-endian headers for
a machine that has not started Linux yet).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.dumps.file import AGAIN, DumpFile, open_file
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.interface import CUT_OFF, LEFT_OUT
from inspector.memory.numbers import U64, addresses, header_of, ordered
from inspector.memory.ranges import Ranges
from inspector.memory.segments import MissingRanges, SegmentedMemory
from inspector.regions import LINEAR_MAP, LINEAR_SIZE

__all__ = ["ElfCore", "Note", "open_core", "parse_notes", "read_core", "write_core"]

ELF_MAGIC = b"\x7fELF"
ET_CORE = 4
EM_PPC64 = 21
PT_LOAD = 1
PT_NOTE = 4
PN_XNUM = 0xFFFF
NO_ADDRESS = (1 << 64) - 1
HEADERS_LIMIT = 1 << 28
"""Bytes of headers or notes that are read at once, at most, whatever a header says."""

FILE_HEADER = np.dtype(
    [
        ("ident", "S16"),
        ("type", "u2"),
        ("machine", "u2"),
        ("version", "u4"),
        ("entry", "u8"),
        ("phoff", "u8"),
        ("shoff", "u8"),
        ("flags", "u4"),
        ("ehsize", "u2"),
        ("phentsize", "u2"),
        ("phnum", "u2"),
        ("shentsize", "u2"),
        ("shnum", "u2"),
        ("shstrndx", "u2"),
    ]
)
"""``Elf64_Ehdr``."""
PROGRAM_HEADER = np.dtype(
    [
        ("type", "u4"),
        ("flags", "u4"),
        ("offset", "u8"),
        ("vaddr", "u8"),
        ("paddr", "u8"),
        ("filesz", "u8"),
        ("memsz", "u8"),
        ("align", "u8"),
    ]
)
"""``Elf64_Phdr``."""
SECTION_HEADER = np.dtype(
    [
        ("name", "u4"),
        ("type", "u4"),
        ("flags", "u8"),
        ("addr", "u8"),
        ("offset", "u8"),
        ("size", "u8"),
        ("link", "u4"),
        ("info", "u4"),
        ("addralign", "u8"),
        ("entsize", "u8"),
    ]
)
"""``Elf64_Shdr``.  The first one holds the number of program headers if that is ``PN_XNUM``."""


class Note(NamedTuple):
    """One ELF note."""

    name: str
    type: int
    data: bytes


class ElfCore(NamedTuple):
    """An opened core: its memory, its notes, and how its file is cut off, if it is."""

    memory: SegmentedMemory
    notes: tuple[Note, ...]
    cut: str = ""

    def note(self, name: str) -> bytes | None:
        """Return the contents of the first note of this name."""
        return next((note.data for note in self.notes if note.name == name), None)


def open_core(path: Path) -> ElfCore:
    """Open an ELF core, zstd-compressed or not.

    Raises:
        BadData: the file is empty, truncated, or not an ELF core of a
            64-bit POWER machine.
    """
    return read_core(open_file(path))


def read_core(file: DumpFile) -> ElfCore:
    """Read the headers of an opened ELF core; the memory stays in the file.

    Raises:
        BadData: it is truncated, or not an ELF core of a 64-bit POWER machine.
    """
    path = file.path
    ident = file.beginning(64)
    if ident[:4] != ELF_MAGIC:
        raise BadData(
            f"{path} is not an ELF core file (it begins with {ident[:4]!r}); "
            "give a capture of this tool or QEMU's dump-guest-memory output"
        )
    try:
        byte_order = {1: "<", 2: ">"}[ident[5]]
        if ident[4] != 2:
            raise BadData(
                f"{path} is a 32-bit ELF file, not a core of a 64-bit POWER machine; "
                "give a dump of the KVM-HV host"
            )
        ehdr = header_of(ident, FILE_HEADER, byte_order)
        kind, machine, phnum = ehdr["type"], ehdr["machine"], ehdr["phnum"]
        if kind != ET_CORE or machine != EM_PPC64:
            raise BadData(
                f"{path} is an ELF file of type {kind} for machine {machine}, "
                f"not a core (type {ET_CORE}) of a 64-bit POWER machine ({EM_PPC64}); "
                "give a dump of the KVM-HV host (a vmlinux goes to --kernel, beside a dump)"
            )
        if phnum == PN_XNUM:
            # the number of program headers is too large for its field, and is in sh_info
            first = _part(file, ehdr["shoff"], SECTION_HEADER.itemsize)
            phnum = header_of(first, SECTION_HEADER, byte_order)["info"]
        headers = np.frombuffer(
            _part(file, ehdr["phoff"], phnum * PROGRAM_HEADER.itemsize),
            dtype=ordered(PROGRAM_HEADER, byte_order),
        )
        notes = tuple(
            note
            for entry in headers[headers["type"] == PT_NOTE]
            for note in parse_notes(
                _part(file, int(entry["offset"]), int(entry["filesz"])), byte_order
            )
        )
    except (IndexError, KeyError, ValueError, MemoryNotReadable) as error:
        raise BadData(
            f"{path} is truncated or damaged: its ELF headers do not fit; {AGAIN}"
        ) from error
    memory, cut = _memory(file, headers[headers["type"] == PT_LOAD])
    return ElfCore(memory, notes, cut)


def _part(file: DumpFile, position: int, length: int) -> bytes:
    if not file.holds(position, length) or length > HEADERS_LIMIT:
        raise MemoryNotReadable(position, length)
    return file.contents.read(position, length)


def _memory(file: DumpFile, loads: NDArray[np.void]) -> tuple[SegmentedMemory, str]:
    """Return the memory in the segments, and how the file is cut off, if it is.

    Bytes that the headers count as memory (``memsz``), but not as bytes of the
    file (``filesz``), were left out when the dump was written; they are not
    zeros.
    """
    starts, known = _physical(loads)
    starts, loads = starts[known], loads[known]
    offsets, sizes, whole = (loads[n].astype(np.uint64) for n in ("offset", "filesz", "memsz"))
    end = np.uint64(file.size)
    held = np.minimum(sizes, end - np.minimum(offsets, end))
    cut = int(np.count_nonzero(held < sizes))
    lost = [
        MissingRanges(why, Ranges((starts + there)[less], (all_ - there)[less]))
        for why, there, all_ in ((CUT_OFF, held, sizes), (LEFT_OUT, sizes, whole))
        if (less := all_ > there).any()
    ]
    # A gap between segments may be a gap in the dump or in the machine, so everything up to the
    # last segment counts as memory that the machine may have.
    ram = Ranges(addresses([0]), addresses([np.max(starts + whole, initial=0)]))
    some = held > 0
    memory = file.contents.view(starts[some], held[some], offsets[some], lost).within(ram)
    if not cut:
        return memory, file.cut
    return memory, (
        f"{file.path} is cut off: {cut} of its {np.count_nonzero(sizes)} segments "
        f"end beyond its end at {file.size} bytes"
    )


def _physical(loads: NDArray[np.void]) -> tuple[U64, NDArray[np.bool_]]:
    """Return the physical address of each segment, and which segments have one.

    The running kernel's core (/proc/kcore) gives no physical address for
    segments outside the linear map, and some writers set all of them to zero;
    then the address is taken from the virtual one, if that is in the linear map.
    """
    physical, virtual = (loads[name].astype(np.uint64) for name in ("paddr", "vaddr"))
    # unsigned: an address below the linear map wraps around to one beyond its size
    linear = virtual - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
    unset = (physical == np.uint64(NO_ADDRESS)) | ((physical == 0) & linear)
    physical[unset] = virtual[unset] - np.uint64(LINEAR_MAP)
    return physical, ~unset | linear


def parse_notes(data: bytes, byte_order: str) -> Iterable[Note]:
    """Yield the notes in the contents of a note segment or section.

    The name and the data of a note are each padded to four bytes.
    """
    position = 0
    while position + 12 <= len(data):
        name_size, size, kind = struct.unpack_from(byte_order + "III", data, position)
        position += 12
        name = data[position : position + name_size].rstrip(b"\0").decode("ascii", "replace")
        position += (name_size + 3) & ~3
        yield Note(name, kind, data[position : position + size])
        position += (size + 3) & ~3


def write_core(memory: SegmentedMemory, notes: Iterable[Note], byte_order: str) -> bytes:
    """Return an uncompressed ELF core that holds these segments and notes.

    ``p_paddr`` is the physical address of a segment and ``p_vaddr`` its address
    in the kernel's linear map, as in the kernel's own vmcore.
    """
    packed = b"".join(_packed(note, byte_order) for note in notes)
    segments = memory.starts.size
    phnum = segments + 1
    extended = phnum >= PN_XNUM
    sections = np.zeros(1 if extended else 0, ordered(SECTION_HEADER, byte_order))
    sections["info"] = phnum
    phoff = FILE_HEADER.itemsize + sections.nbytes
    note_offset = phoff + phnum * PROGRAM_HEADER.itemsize
    data_offset = (note_offset + len(packed) + 7) & ~7

    ehdr = np.zeros(1, ordered(FILE_HEADER, byte_order))
    ehdr["ident"] = ELF_MAGIC + bytes([2, 1 if byte_order == "<" else 2, 1])
    ehdr["type"], ehdr["machine"], ehdr["version"] = ET_CORE, EM_PPC64, 1
    ehdr["ehsize"], ehdr["phentsize"] = FILE_HEADER.itemsize, PROGRAM_HEADER.itemsize
    ehdr["phoff"], ehdr["phnum"] = phoff, min(phnum, PN_XNUM)
    if extended:
        ehdr["shoff"], ehdr["shentsize"] = FILE_HEADER.itemsize, SECTION_HEADER.itemsize
        ehdr["shnum"] = 1

    headers = np.zeros(phnum, dtype=ordered(PROGRAM_HEADER, byte_order))
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
    return ehdr.tobytes() + sections.tobytes() + headers.tobytes() + packed + padding + body


def _packed(note: Note, byte_order: str) -> bytes:
    name = note.name.encode("ascii") + b"\0"
    return (
        struct.pack(byte_order + "III", len(name), len(note.data), note.type)
        + name
        + bytes(-len(name) % 4)
        + note.data
        + bytes(-len(note.data) % 4)
    )
