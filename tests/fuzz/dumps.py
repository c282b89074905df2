"""Dumps in every format, and the compressions of files."""

from __future__ import annotations

import functools
import gzip
import lzma
import struct
from collections.abc import Iterator

import zstandard

from inspector.dumps.compression import PageDamaged, expand
from inspector.dumps.elfcore import Note, write_core
from inspector.dumps.formats import Dump, open_dump
from inspector.image.elf import unpacked
from inspector.image.vmcoreinfo import facts
from tests.dumps.kdumpwriter import COMPRESSORS, KdumpSpec, flattened, kdump
from tests.fuzz.mutate import Fields, binary, text
from tests.fuzz.target import PAGE, Target, asked, cut_at, joined, read_around, saved
from tests.memories import of_segments

__all__ = ["DUMPS", "elf_fields"]

ORDERS = "<>"


def _read_dump(dump: Dump) -> None:
    facts(dump.vmcoreinfo or "")
    places = [0, PAGE, 2 * PAGE - 4, 3 * PAGE, 5 * PAGE, (1 << 64) - 4]
    if dump.core is not None:
        places += [int(one) for one in dump.core.memory.starts[:2]]
        places += [int(one) for one in (dump.core.memory.starts + dump.core.memory.sizes)[:2]]
    read_around(dump.memory, places)


def open_dump_of(data: bytes) -> None:
    _read_dump(open_dump(saved(data)))


def _order_at(data: bytes, place: int) -> str:
    return ">" if data[place : place + 1] == b"\2" else "<"


def elf_fields(data: bytes) -> Iterator[Fields]:
    """Yield the fields of the headers of an ELF file, and of its notes."""
    order = _order_at(data, 5)
    yield Fields((4, 5), 1, order)
    yield Fields((16, 18, *range(52, 64, 2)), 2, order)
    yield Fields((20, 48), 4, order)
    yield Fields((24, 32, 40), 8, order)
    if len(data) < 64:
        return
    phoff, shoff = struct.unpack_from(order + "QQ", data, 32)
    phnum, _, shnum = struct.unpack_from(order + "HHH", data, 56)
    for row in range(min(phnum, 8)):
        at = phoff + 56 * row
        yield Fields((at,), 4, order)
        yield Fields(range(at + 8, at + 56, 8), 8, order)
        if at + 40 <= len(data) and data[at : at + 4] in (b"\4\0\0\0", b"\0\0\0\4"):
            (notes,) = struct.unpack_from(order + "Q", data, at + 8)
            yield Fields(range(notes, notes + 48, 4), 4, order)
    for row in range(min(shnum, 16)):
        at = shoff + 64 * row
        yield Fields((at, at + 4, at + 40, at + 44), 4, order)
        yield Fields((*range(at + 8, at + 40, 8), at + 48, at + 56), 8, order)


@functools.cache
def _cores() -> tuple[bytes, ...]:
    memory = of_segments([(0, b"\1" * 40), (PAGE, bytes(64)), (PAGE + 64, b"\3" * 8)])
    notes = [Note("VMCOREINFO", 0, b"OSRELEASE=6\nPAGESIZE=4096\n"), Note("CORE", 1, bytes(9))]
    made = [write_core(memory, notes, order) for order in ORDERS]
    many = bytearray(made[0])
    many[56:58] = b"\xff\xff"
    many[40:48] = struct.pack("<Q", len(many))
    many += bytes(44) + struct.pack("<I", 4) + bytes(16)
    return (*made, bytes(many))


def _kdump_order(data: bytes) -> str:
    return ">" if data[8:11] == b"\0\0\0" else "<"


def kdump_fields(data: bytes, begin: int = 0) -> Iterator[Fields]:
    """Yield the fields of a kdump-compressed dump as the writer of the tests lays it out."""
    order = _kdump_order(data[begin : begin + 12])
    yield Fields((begin + 8, *range(begin + 424, begin + 464, 4)), 4, order)
    sub = begin + PAGE
    yield Fields(range(sub + 8, sub + 24, 4), 4, order)
    yield Fields((sub, *range(sub + 24, sub + 104, 8)), 8, order)
    yield Fields((begin + 2 * PAGE, begin + 3 * PAGE), 1, order)
    for row in range(begin + 4 * PAGE, begin + 4 * PAGE + 24 * 4, 24):
        yield Fields((row,), 8, order)
        yield Fields((row + 8, row + 12), 4, order)


def _pages() -> dict[int, bytes]:
    return {0: bytes(PAGE), 1: bytes(range(256)) * 16, 3: b"linux" * 819 + b"!", 5: b"\1" * PAGE}


@functools.cache
def _kdumps() -> tuple[bytes, ...]:
    specs = [
        KdumpSpec(_pages(), (2,), order=order, compression=name, version=version)
        for name, order, version in (
            *((name, "<", 6) for name in COMPRESSORS),
            *(("zlib", ">", 5), ("none", "<", 1)),
        )
    ]
    specs.append(KdumpSpec(_pages(), notes=bytes(40), vmcoreinfo=b"OSRELEASE=6\n"))
    specs.append(KdumpSpec(_pages(), status=8))
    return tuple(kdump(spec) for spec in specs)


def flat_fields(data: bytes) -> Iterator[Fields]:
    """Yield the fields of the header and of every record."""
    yield Fields((16, 24), 8, ">")
    at = PAGE
    while at + 16 <= len(data):
        yield Fields((at, at + 8), 8, ">")
        (size,) = struct.unpack_from(">q", data, at + 8)
        if size < 0:
            break
        at += 16 + size


@functools.cache
def _flats() -> tuple[bytes, ...]:
    found = []
    for data in (_cores()[0], _kdumps()[0]):
        pieces = [(at, data[at : at + 300]) for at in range(0, len(data), 300)]
        found.append(flattened([(0, bytes(80)), *reversed(pieces), (10, data[10:40])]))
    return tuple(found)


def split_fields(data: bytes) -> Iterator[Fields]:
    """Yield the fields of both files; the first four bytes say where the second begins."""
    yield Fields((0,), 4, "<")
    yield from kdump_fields(data, 4)
    yield from kdump_fields(data, cut_at(data))


@functools.cache
def _splits() -> tuple[bytes, ...]:
    pages = {number: bytes([number]) * PAGE for number in range(6)}
    parts = [kdump(KdumpSpec(pages, split=part)) for part in ((0, 3), (3, 6))]
    return (joined(*parts),)


def open_split_of(data: bytes) -> None:
    cut = cut_at(data)
    first, second = saved(data[4:cut], "first"), saved(data[cut:], "second")
    _read_dump(open_dump(f"split:{first},{second}"))


def open_raw_of(data: bytes) -> None:
    """Take the first line for the address, and the rest for the image."""
    address, _, image = data.partition(b"\n")
    suffix = address.decode("utf-8", "surrogateescape")
    _read_dump(open_dump(f"raw:{saved(image)}@{suffix}"))


def _compressed() -> tuple[bytes, ...]:
    page = _pages()[3]
    return tuple(bytes([flag]) + squeeze(page) for flag, squeeze in COMPRESSORS.values())


def expand_page(data: bytes) -> None:
    """Take the first byte for the flags."""
    assert len(expand(data[1:], data[0] if data else 0, PAGE)) == PAGE


def _packed() -> tuple[bytes, ...]:
    plain = b"Linux version 6.12 " * 20
    return (lzma.compress(plain), gzip.compress(plain), zstandard.compress(plain), plain)


def unpack(data: bytes) -> None:
    """Unpack a file that may be packed, as a kernel's file and as a dump."""
    path = saved(data)
    asked(unpacked, path)
    asked(open_dump, path)


DUMPS = {
    "ELF core": Target(_cores, open_dump_of, binary(elf_fields)),
    "kdump": Target(_kdumps, open_dump_of, binary(kdump_fields)),
    "flattened dump": Target(_flats, open_dump_of, binary(flat_fields)),
    "split dump": Target(_splits, open_split_of, binary(split_fields)),
    "raw image": Target(lambda: (b"0x1000\n" + bytes(90), b"\n" + b"x" * 9), open_raw_of, text),
    "page of a kdump": Target(
        _compressed,
        expand_page,
        binary(lambda data: [Fields(range(len(data)), 1, "<")]),
        (PageDamaged,),
    ),
    "packed file": Target(
        _packed, unpack, binary(lambda data: [Fields(range(0, min(len(data), 64) - 3), 4, "<")])
    ),
}
