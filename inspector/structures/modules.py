"""Loaded modules and their symbols (kernel/module/, include/linux/module.h).

Module addresses differ between boots, so they are read from memory each
time: the ``modules`` list leads to ``struct module``, whose ``kallsyms``
holds the symbol table with absolute addresses.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadData, MemoryNotReadable, TargetNotSupported
from inspector.image.elf import SymbolTable
from inspector.memory.interface import why_missing
from inspector.memory.numbers import U64, addresses, is_address
from inspector.structures.lists import list_entries
from inspector.structures.space import KernelSpace

__all__ = [
    "exported_symbol",
    "find_modules",
    "module_contents",
    "module_memory",
    "module_symbols",
    "module_values",
]

SYMBOL_SIZE = 24
SYMBOL_LIMIT = 1 << 20
NAME_LIMIT = 512
PART = 1 << 12
NO_TEXT = 0xFF
MEMORY_LIMIT = 1 << 26
"""No module is larger than this many bytes."""


def find_modules(kernel: KernelSpace, names: set[str]) -> dict[str, int]:
    """Return the addresses of ``struct module`` of the named modules that are loaded.

    Raises:
        BadData: the list of modules does not lead back to its head.
        MemoryNotReadable: not all of them are found, and a part of the list
            is missing.
    """
    offset, size = kernel.profile.struct("module").place("name")
    found: dict[str, int] = {}
    missing: list[MemoryNotReadable] = []
    try:
        for module in list_entries(kernel, kernel.profile.symbols["modules"], "module", "list"):
            try:
                text = kernel.read(module + offset, size)
            except MemoryNotReadable as error:
                missing.append(error)
                continue
            name = text.split(b"\0", 1)[0].decode("ascii", "replace")
            if name in names:
                found[name] = module
                if len(found) == len(names):
                    return found
    except MemoryNotReadable as error:
        missing.append(error)
    if missing:
        raise missing[0]
    return found


def module_memory(kernel: KernelSpace, module: int) -> list[tuple[int, int]]:
    """Return address and size of every piece of memory that a loaded module lies in.

    Up to 6.3 there is one piece, ``core_layout``; from 6.4 on (ac3b43283923)
    there is one for each kind of contents.

    Raises:
        BadData: a piece is larger than any module.
    """
    if "core_layout.base" in kernel.profile.struct("module"):
        base = kernel.field("module", module, "core_layout.base")
        pieces = [(base, kernel.field("module", module, "core_layout.size"))]
    else:
        offset, size = kernel.profile.struct("module").place("mem")
        step = kernel.profile.struct("module_memory").size
        pieces = [
            (
                kernel.field("module_memory", entry, "base"),
                kernel.field("module_memory", entry, "size"),
            )
            for entry in range(module + offset, module + offset + size, step)
        ]
    for base, size in pieces:
        if size > MEMORY_LIMIT:
            raise BadData(
                f"the module at {module:#x} claims {size} bytes at {base:#x}, more than any has"
            )
    return [(base, size) for base, size in pieces if size]


def module_contents(kernel: KernelSpace, module: int) -> list[tuple[int, bytes]]:
    """Return address and contents of every piece of memory that a loaded module lies in.

    Raises:
        MemoryNotReadable: a part is not in the target.
    """
    found = []
    for base, size in module_memory(kernel, module):
        data, present = kernel.read_many(addresses([base]), size)
        if not present[0]:
            raise MemoryNotReadable(
                base, size, f"the module at {module:#x} lies there", kernel.name
            )
        found.append((base, data.tobytes()))
    return found


def exported_symbol(kernel: KernelSpace, module: int, name: str) -> int | None:
    """Return the value of a symbol that a loaded module exports.

    A ``struct kernel_symbol`` holds pointers, or on kernels with
    CONFIG_HAVE_ARCH_PREL32_RELOCATIONS 32-bit offsets from themselves.
    """
    layout = kernel.profile.struct("kernel_symbol")
    relative = "name" not in layout
    wanted = name.encode("ascii") + b"\0"

    def target(entry: int, member: str) -> int:
        if not relative:
            return kernel.field("kernel_symbol", entry, member)
        offset, size = layout.place(f"{member}_offset")
        distance = kernel.unsigned(entry + offset, size)
        # The distance is a signed 32-bit number, counted from the member itself.
        return entry + offset + distance - (1 << 32 if distance >> 31 else 0)

    for table, number in (("syms", "num_syms"), ("gpl_syms", "num_gpl_syms")):
        first = kernel.field("module", module, table)
        count = kernel.field("module", module, number)
        if count > SYMBOL_LIMIT:
            raise BadData(f"the module at {module:#x} says that it exports {count} symbols")
        for entry in range(first, first + count * layout.size, layout.size):
            if kernel.read(target(entry, "name"), len(wanted)) == wanted:
                return target(entry, "value")
    return None


def module_symbols(kernel: KernelSpace, module: int) -> SymbolTable:
    """Return the symbols of a loaded module, as its ``kallsyms`` has them.

    Raises:
        MemoryNotReadable: a part of them is missing.
        TargetNotSupported: it has none.
    """
    table, missing = _symbols(kernel, module)
    if missing is not None:
        raise missing
    return table


def module_values(kernel: KernelSpace, module: int, name: str) -> list[int]:
    """Return the distinct values of the symbols of a loaded module that have this name.

    Raises:
        MemoryNotReadable: none was found, and a part of the symbols is missing.
        TargetNotSupported: it has no symbols.
    """
    table, missing = _symbols(kernel, module)
    values = table.values(name)
    if missing is not None and not values:
        raise missing
    return values


def _symbols(kernel: KernelSpace, module: int) -> tuple[SymbolTable, MemoryNotReadable | None]:
    """Return the readable symbols of a loaded module, and the error if some are missing."""
    kallsyms = kernel.field("module", module, "kallsyms")
    count = kernel.field("mod_kallsyms", kallsyms, "num_symtab")
    if not 0 < count <= SYMBOL_LIMIT:
        raise TargetNotSupported(
            f"the module at {module:#x} says it has {count} symbols; "
            "the kernel must be built with CONFIG_KALLSYMS"
        )
    symtab = kernel.field("mod_kallsyms", kallsyms, "symtab")
    entries, read, missing = _there(kernel, symtab, count * SYMBOL_SIZE)
    if missing is not None:
        # One row per symbol: those that are missing a byte are dropped.
        whole = read.reshape(count, SYMBOL_SIZE).all(axis=1)
        rows = np.frombuffer(entries, dtype=np.uint8).reshape(count, SYMBOL_SIZE)
        entries = rows[whole].tobytes()
    # The first 32-bit word of each symbol, st_name, is the offset of its name.
    names = np.frombuffer(entries, dtype=kernel.profile.byte_order + "u4")[:: SYMBOL_SIZE // 4]
    strtab = kernel.field("mod_kallsyms", kallsyms, "strtab")
    last = int(names.max(initial=0))
    if last > count * NAME_LIMIT:
        raise BadData(f"the module at {module:#x} says that it has {last} bytes of names")
    # The length of the last name is not known before its terminating NUL is found.
    strings, _, lost = _there(kernel, strtab, last)
    try:
        strings += _rest_of_string(kernel, strtab + last)
    except MemoryNotReadable as error:
        lost = lost or error
    return SymbolTable(entries, strings, kernel.profile.byte_order), missing or lost


def _there(
    kernel: KernelSpace, address: int, length: int
) -> tuple[bytes, NDArray[np.bool_], MemoryNotReadable | None]:
    """Return some bytes, which of them were read, and the error if some are missing.

    A missing byte is ``NO_TEXT`` and not 0, because a 0 would end a name too early.
    """
    with suppress(MemoryNotReadable):
        return kernel.read(address, length), np.ones(length, np.bool_), None
    data = np.full(length, NO_TEXT, dtype=np.uint8)
    read = np.zeros(length, dtype=np.bool_)
    first, last = -(-address // PART) * PART, (address + length) // PART * PART
    if is_address(address + length):
        parts: U64 = np.arange(first, last, PART, dtype=np.uint64)
        records = kernel.read_many(parts, PART)
        inner = slice(first - address, first - address + parts.size * PART)
        data[inner].reshape(-1, PART)[records.present] = records.data[records.present]
        read[inner].reshape(-1, PART)[records.present] = True
    # The first and the last piece, which are only a part of a page.  A capture may have these
    # bytes and no more of their page.
    for begin, end in ((address, min(first, address + length)), (last, address + length)):
        with suppress(MemoryNotReadable):
            if address <= begin < end:
                piece = np.frombuffer(kernel.read(begin, end - begin), dtype=np.uint8)
                data[begin - address : end - address] = piece
                read[begin - address : end - address] = True
    if read.all():
        return data.tobytes(), read, None
    lost = address + int(np.argmin(read))
    step = min(PART, address + length - lost)
    why = why_missing(kernel, lost, step)
    return data.tobytes(), read, MemoryNotReadable(lost, step, why, kernel.name)


def _rest_of_string(kernel: KernelSpace, place: int) -> bytes:
    # One record per byte, because the memory after the NUL may be missing.
    steps = addresses(range(NAME_LIMIT))
    where: U64 = addresses(place % (1 << 64)) + steps
    data, present = kernel.read_many(where, 1)
    text = data.tobytes()
    length = text.find(b"\0") + 1 or NAME_LIMIT
    if not present[:length].all():
        raise MemoryNotReadable(place, length, space=kernel.name)
    return text[:length]
