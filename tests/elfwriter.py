"""A writer of ELF files with sections, as small as the tests need."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

__all__ = ["build_id_note", "elf_file", "function_table", "symbol_table"]

SHT = {".symtab": 2, ".strtab": 3, ".notes": 7, ".bss": 8}


def elf_file(
    sections: Mapping[str, bytes],
    order: str = "<",
    *,
    machine: int = 21,
    load: tuple[int, bytes] = (0, b""),
) -> bytes:
    """Return a 64-bit ELF file; ``load`` is a segment's virtual address and bytes."""
    names = ["", *sections, ".shstrtab"]
    strings = b"".join(name.encode() + b"\0" for name in names)
    contents = [b"", *sections.values(), strings]
    position = 64 + 56
    headers = b""
    body = b""
    for name, content in zip(names, contents, strict=True):
        kind = SHT.get(name, 1) if name else 0
        body += bytes(-len(body) % 8)
        headers += struct.pack(
            order + "IIQQQQIIQQ",
            strings.index(b"\0" + name.encode() + b"\0") + 1 if name else 0,
            3 if name == ".shstrtab" else kind,
            0,
            0,
            position + len(body),
            len(content),
            names.index(".strtab") if name == ".symtab" and ".strtab" in names else 0,
            0,
            8,
            24 if name == ".symtab" else 0,
        )
        body += content
    address, data = load
    program = struct.pack(
        order + "IIQQQQQQ", 1, 5, position + len(body), address, address, len(data), len(data), 1
    )
    body += data
    body += bytes(-len(body) % 8)
    ident = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    ehdr = ident + struct.pack(
        order + "HHIQQQIHHHHHH",
        2,
        machine,
        1,
        0,
        64,
        position + len(body),
        0,
        64,
        56,
        1,
        64,
        len(names),
        len(names) - 1,
    )
    return ehdr + program + body + headers


def symbol_table(symbols: Sequence[tuple[int, int, int]], order: str = "<") -> bytes:
    """Return a symbol table of ``(offset of the name, section, value)``."""
    rows = [
        struct.pack(order + "IBBHQQ", name, 0x11, 0, section, value, 0)
        for name, section, value in symbols
    ]
    return bytes(24) + b"".join(rows)


def function_table(functions: Sequence[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """Return a symbol table of functions: ``(offset of the name, section, value, size)``."""
    return bytes(24) + b"".join(
        struct.pack(order + "IBBHQQ", name, 0x12, 0, section, value, size)
        for name, section, value, size in functions
    )


def build_id_note(build_id: bytes, order: str = "<") -> bytes:
    """Return a note with a GNU build ID, after another note."""
    other = struct.pack(order + "III", 6, 3, 0x100) + b"Linux\0\0\0" + b"abc\0"
    return other + struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id
