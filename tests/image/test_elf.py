"""Kernel files, packed or not, whole or not."""

from __future__ import annotations

import contextlib
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps import packed
from inspector.dumps.formats import open_dump
from inspector.errors import BadData
from inspector.image.elf import ElfFile, SymbolTable, build_id_in, unpacked
from tests.elfwriter import build_id_note, elf_file, function_table, symbol_table
from tests.profiles import examples

STRINGS = b"\0driver_modules\0linux_banner\0twice\0elsewhere\0"
BUILD_ID = bytes(range(20))
BASE = 0xC000_0000_0000_0000


def name(text: bytes) -> int:
    return STRINGS.index(text)


def kernel(order: str = "<", **options: int) -> bytes:
    table = symbol_table(
        [
            (name(b"driver_modules\0"), 1, 0x10),
            (name(b"modules\0"), 1, 0x20),
            (name(b"linux_banner\0"), 1, BASE),
            (name(b"twice\0"), 1, 0x30),
            (name(b"twice\0"), 1, 0x40),
            (name(b"elsewhere\0"), 0, 0x50),
        ],
        order,
    )
    sections = {
        ".symtab": table,
        ".strtab": STRINGS,
        ".notes": build_id_note(BUILD_ID, order),
        ".BTF": b"types",
        ".bss": b"",
    }
    return elf_file(sections, order, load=(BASE, b"Linux version 6\0"), **options)


def saved(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_what_a_kernel_file_holds(tmp_path: Path, order: str) -> None:
    image = ElfFile(saved(tmp_path, kernel(order)))
    assert image.byte_order == order
    assert image.section(".BTF") == b"types"
    assert image.section(".nothing") is None
    assert image.section(".bss") is None
    assert image.build_id == BUILD_ID.hex()
    assert image.symbols.values("linux_banner") == [BASE]
    assert image.at(BASE, 5) == b"Linux"
    assert image.at(BASE + 6, 7) == b"version"
    assert image.at(BASE + 10, 7) is None
    assert image.at(BASE - 1, 2) is None


def test_symbols_are_found_by_the_tail_of_a_string(tmp_path: Path) -> None:
    symbols = ElfFile(saved(tmp_path, kernel())).symbols
    assert symbols.values("modules") == [0x20]
    assert symbols.values("driver_modules") == [0x10]
    assert symbols.values("odules") == []
    assert symbols.values("twice") == [0x30, 0x40]
    assert symbols.values("elsewhere") == [], "it is not defined here"
    assert symbols.values("nothing") == []


def test_a_cut_symbol_table_gives_its_whole_entries() -> None:
    entries = symbol_table([(1, 1, 7), (1, 1, 9)])
    assert SymbolTable(entries[:-1], b"\0a\0", "<").values("a") == [7]
    assert SymbolTable(b"", b"", "<").values("a") == []


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_function_an_address_lies_in(order: str) -> None:
    entries = function_table([(1, 1, 0x100, 0x20), (7, 1, 0x140, 8), (7, 0, 0x200, 8)], order)
    table = SymbolTable(entries, b"\0first\0second\0", order)
    assert table.covering(0x100) == table.covering(0x11F) == ("first", 0x100)
    assert table.covering(0x147) == ("second", 0x140)
    for outside in (0, 0xFF, 0x120, 0x148, 0x200):
        assert table.covering(outside) is None
    assert SymbolTable(symbol_table([(1, 1, 7)]), b"\0a\0", "<").covering(7) is None


def test_a_stripped_kernel_has_no_symbols(tmp_path: Path) -> None:
    image = ElfFile(saved(tmp_path, elf_file({".text": b"code"})))
    with pytest.raises(BadData, match="no symbol table"):
        _ = image.symbols
    assert image.build_id == ""


def test_notes_without_a_build_id() -> None:
    note = build_id_note(BUILD_ID)
    assert build_id_in(note, "<") == BUILD_ID.hex()
    assert build_id_in(note[:-33], "<") == ""
    assert build_id_in(b"", "<") == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an ELF file"),
        (b"#!/bin/sh\n", "is not an ELF file"),
        (b"\x7fELF", "is not an ELF file"),
        (kernel(machine=62), "EM_X86_64, not for 64-bit POWER"),
        (kernel(machine=20), "not for 64-bit POWER"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        ElfFile(saved(tmp_path, data))


def use(path: Path) -> None:
    """Make all the queries that a kernel file has to answer."""
    image = ElfFile(path)
    for section in (".BTF", ".modinfo"):
        image.section(section)
    image.symbols.values("modules")
    image.at(BASE, 16)
    assert isinstance(image.build_id, str)


@pytest.mark.slow
def test_every_truncation_is_bad_data(tmp_path: Path) -> None:
    data = kernel()
    for length in range(len(data)):
        with pytest.raises(BadData):
            use(saved(tmp_path, data[:length]))


@pytest.mark.slow
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(kernel()) - 1), st.binary(min_size=1, max_size=8))
def test_changed_bytes_raise_bad_data_or_nothing(
    tmp_path: Path, position: int, change: bytes
) -> None:
    data = kernel()
    with contextlib.suppress(BadData):
        use(saved(tmp_path, data[:position] + change + data[position + len(change) :]))


PACKERS = (lzma.compress, gzip.compress, zstandard.compress)
Packer = Callable[[bytes], bytes]


@pytest.mark.parametrize("pack", [*PACKERS, bytes], ids=["xz", "gz", "zst", "plain"])
def test_packed_files(tmp_path: Path, pack: Packer) -> None:
    data = kernel()
    assert unpacked(saved(tmp_path, pack(data))) == data
    assert ElfFile(tmp_path / "vmlinux").build_id == BUILD_ID.hex()


@pytest.mark.parametrize("pack", PACKERS, ids=["xz", "gz", "zst"])
def test_damaged_packed_files(tmp_path: Path, pack: Packer) -> None:
    data = pack(kernel())
    for length in (8, 16, len(data) // 2, len(data) - 1):
        with pytest.raises(BadData):
            unpacked(saved(tmp_path, data[:length]))
    for position in range(6, len(data), 11):
        changed = data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]
        try:
            unpacked(saved(tmp_path, changed))
        except BadData:
            continue


@pytest.mark.parametrize("pack", PACKERS, ids=["xz", "gz", "zst"])
def test_what_unpacks_to_too_much(
    tmp_path: Path, pack: Packer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "UNPACKED_LIMIT", 1 << 20)
    path = saved(tmp_path, pack(bytes(1 << 20)))
    assert unpacked(path) == bytes(1 << 20)
    for bomb in (pack(bytes((1 << 20) + 1)), pack(bytes(1 << 20)) + pack(b"x")):
        for use in (unpacked, open_dump):
            with pytest.raises(BadData, match="unpacks to more than"):
                use(saved(tmp_path, bomb))


def test_an_xz_stream_that_asks_for_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, lzma.compress(kernel()))
    monkeypatch.setattr(packed, "DICTIONARY_LIMIT", 1 << 16)
    with pytest.raises(BadData, match=r"damaged: Memory usage limit"):
        unpacked(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadData, match="cannot read"):
            unpacked(path)
