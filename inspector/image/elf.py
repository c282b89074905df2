"""Kernel files: a vmlinux or a module, packed or not.

pyelftools reads the section headers.  The symbol table is read as one array,
because pyelftools would need seconds to walk it.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inspector.dumps.elfcore import parse_notes
from inspector.dumps.packed import is_packed, pieces, unpack
from inspector.errors import BadData
from inspector.memory.arrays import is_in
from inspector.storage import contents_of

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

__all__ = [
    "NT_GNU_BUILD_ID",
    "ElfFile",
    "SymbolTable",
    "build_ids_anywhere",
    "headers_of",
    "unpacked",
]

FILE_LIMIT = 1 << 31
"""Most bytes of a kernel file or a recording; a vmlinux with all its DWARF has a quarter."""
EM_PPC64 = 21
NT_GNU_BUILD_ID = 3
BUILD_ID_SIZE = 20
STT_MASK = 0xF
STT_FUNC = 2
_DAMAGE = (AttributeError, KeyError, OverflowError, TypeError, ValueError)


def headers_of(data: bytes) -> ELFFile:
    """Return pyelftools' view of an ELF file.

    pyelftools is imported only when it is needed: the import takes as long as
    reading a kernel whose profile is known.
    """
    from elftools.elf.elffile import ELFFile

    return ELFFile(io.BytesIO(data))


def _damage() -> tuple[type[Exception], ...]:
    from elftools.common.exceptions import ELFError

    return (ELFError, *_DAMAGE)


def unpacked(path: Path) -> bytes:
    """Return the contents of a file, decompressed if it is xz, zstd or gzip.

    Raises:
        BadData: the file cannot be read, is damaged, or unpacks to too much.
    """
    data = contents_of(path, FILE_LIMIT)
    return unpack(path, pieces(data)) if is_packed(data) else data


class SymbolTable:
    """The symbols of an ELF file, looked up by name without listing them all.

    ``entries`` is the raw symbol table and ``strings`` its string table, from
    a file or from the memory of a running kernel (``module.kallsyms``).
    """

    def __init__(self, entries: bytes, strings: bytes, byte_order: str) -> None:
        dtype = np.dtype(
            [
                ("name", byte_order + "u4"),
                ("info", "u1"),
                ("other", "u1"),
                ("shndx", byte_order + "u2"),
                ("value", byte_order + "u8"),
                ("size", byte_order + "u8"),
            ]
        )
        usable = len(entries) - len(entries) % dtype.itemsize
        self._entries = np.frombuffer(entries[:usable], dtype=dtype)
        self._strings = strings

    def values(self, name: str) -> list[int]:
        """Return the distinct values of the defined symbols of this name."""
        return sorted({value for _, value in self.places(name)})

    def covering(self, address: int) -> tuple[str, int] | None:
        """Return name and value of the function whose extent holds an address."""
        value, size = self._entries["value"], self._entries["size"]
        inside = (value <= np.uint64(address)) & (np.uint64(address) - value < size)
        inside &= (self._entries["shndx"] != 0) & ((self._entries["info"] & STT_MASK) == STT_FUNC)
        rows = np.flatnonzero(inside)
        if not rows.size:
            return None
        row = self._entries[rows[-1]]
        begin = int(row["name"])
        name = self._strings[begin : self._strings.find(b"\0", begin)]
        return name.decode("ascii", "replace"), int(row["value"])

    def places(self, name: str) -> list[tuple[int, int]]:
        """Return section index and value of every defined symbol of this name.

        String tables are suffix-merged: ``modules`` may exist only as the
        tail of another name, so every offset at which it occurs is looked up.
        """
        return [(int(row["shndx"]), int(row["value"])) for row in self._named(name)]

    def entries(self, name: str) -> list[tuple[int, int]]:
        """Return the local entry point and the end of every function of this name.

        In ELFv2, callers of the same module enter a function after the
        instructions that set up r2; the top three bits of ``st_other`` give
        their length (``PPC64_LOCAL_ENTRY_OFFSET``: 0 and 1 stand for none).
        """
        rows = self._named(name)
        return [
            (
                int(row["value"]) + (1 << (int(row["other"]) >> 5) >> 2 << 2),
                int(row["value"]) + int(row["size"]),
            )
            for row in rows
        ]

    def _named(self, name: str) -> NDArray[np.void]:
        needle = name.encode("ascii") + b"\0"
        offsets = []
        found = self._strings.find(needle)
        while found >= 0:
            offsets.append(found)
            found = self._strings.find(needle, found + 1)
        names = self._entries["name"].astype(np.uint32)
        hits = is_in(names, np.array(offsets, dtype=np.uint32)) & (self._entries["shndx"] != 0)
        rows: NDArray[np.void] = self._entries[hits]
        return rows


class ElfFile:
    """A vmlinux or a kernel module.

    Raises:
        BadData: the file is not an ELF file of a 64-bit POWER kernel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = unpacked(path)
        try:
            self._elf = headers_of(self._data)
            machine, bits = self._elf.header["e_machine"], self._elf.elfclass
        except _damage() as error:
            raise BadData(f"{path} is not an ELF file: {error}") from error
        if machine != "EM_PPC64" or bits != 64:
            raise BadData(f"{path} is an ELF file for {machine}, not for 64-bit POWER")
        self.byte_order = "<" if self._elf.little_endian else ">"

    def section(self, name: str) -> bytes | None:
        """Return the contents of a section, or None where there is none."""
        with self._reading():
            found = self._elf.get_section_by_name(name)
            if found is None or found["sh_type"] == "SHT_NOBITS":
                return None
            begin, size = int(found["sh_offset"]), int(found["sh_size"])
        if begin + size > len(self._data):
            raise BadData(f"{self.path} is truncated: section {name} ends after its end")
        return self._data[begin : begin + size]

    @cached_property
    def symbols(self) -> SymbolTable:
        """The file's ``.symtab``."""
        entries, strings = self.section(".symtab"), self.section(".strtab")
        if entries is None or strings is None:
            raise BadData(
                f"{self.path} has no symbol table; give the vmlinux of the package, "
                "not a stripped copy"
            )
        return SymbolTable(entries, strings, self.byte_order)

    @cached_property
    def build_id(self) -> str:
        """The GNU build ID in hexadecimal, empty where there is none."""
        for section in (".notes", ".note.gnu.build-id"):
            data = self.section(section)
            if data is not None:
                return build_id_in(data, self.byte_order)
        return ""

    def at(self, address: int, length: int) -> bytes | None:
        """Return the file's bytes at a virtual address, None if it does not hold all of them."""
        with self._reading():
            for segment in self._elf.iter_segments("PT_LOAD"):
                inside = address - segment["p_vaddr"]
                if inside >= 0 and inside + length <= segment["p_filesz"]:
                    begin = segment["p_offset"] + inside
                    return self._data[begin : begin + length]
        return None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what pyelftools raises over damaged headers into BadData."""
        try:
            yield
        except _damage() as error:
            raise BadData(f"{self.path} is damaged: {error}") from error


def build_id_in(notes: bytes, byte_order: str) -> str:
    """Return the GNU build ID among ELF notes, in hexadecimal, or an empty string."""
    for note in parse_notes(notes, byte_order):
        if note.name == "GNU" and note.type == NT_GNU_BUILD_ID:
            return note.data.hex()
    return ""


def build_ids_anywhere(data: bytes, byte_order: str) -> list[str]:
    """Return every 20-byte GNU build ID whose note occurs in the data, in hexadecimal."""
    head = struct.pack(byte_order + "III", 4, BUILD_ID_SIZE, NT_GNU_BUILD_ID) + b"GNU\0"
    return [part[:BUILD_ID_SIZE].hex() for part in data.split(head)[1:]]
