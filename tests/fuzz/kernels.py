"""Descriptions of a kernel: its files, type information, symbols, profiles, VMCOREINFO."""

from __future__ import annotations

import functools
import json
import lzma
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fixtures.synthetic import LINEAR, build
from inspector.errors import InspectorError
from inspector.image import kallsyms
from inspector.image.btf import Btf
from inspector.image.cache import cached_profiles
from inspector.image.dwarf import Dwarf
from inspector.image.elf import ElfFile
from inspector.image.profile import STRUCTS, Profile, Types, layouts
from inspector.image.vmcoreinfo import read_vmcoreinfo, release_and_page_size
from inspector.kvm.collect import collect
from inspector.memory.interface import AddressSpace
from inspector.structures.space import KernelSpace
from tests.btfwriter import BtfWriter
from tests.elfwriter import build_id_note, elf_file, function_table
from tests.fuzz.dumps import elf_fields
from tests.fuzz.mutate import Fields, binary, json_tree
from tests.fuzz.target import Target, asked, cut_at, folder, joined, saved
from tests.image.test_btf import ask, vmlinux
from tests.kallsymswriter import Form, write
from tests.memories import of_segments

__all__ = ["KERNELS"]

DATA = Path(__file__).resolve().parent.parent / "image" / "data"
ORDERS = "<>"
PLACE = 1 << 13
SYMBOLS = 600
CHUNK = 1 << 15


@functools.cache
def _kernel_files() -> tuple[bytes, ...]:
    strings = b"\0another_vm_list\0linux_banner\0__start_notes\0"
    found = []
    for order in ORDERS:
        functions = [(9, 1, LINEAR + 64, 16), (17, 1, LINEAR + 96, 8), (30, 1, LINEAR, 0)]
        sections = {
            ".text": bytes(64),
            ".notes": build_id_note(bytes(range(20)), order),
            ".modinfo": b"vermagic=6.12 SMP\0",
            ".symtab": function_table(functions, order),
            ".strtab": strings,
            ".BTF": vmlinux(order).data(),
        }
        found.append(elf_file(sections, order, load=(LINEAR, b"Linux version 6.12\0" + bytes(99))))
    return tuple(found)


def read_kernel_file(data: bytes) -> None:
    """Read everything that the inspector reads of a kernel's file."""
    file = ElfFile(saved(data))
    asked(lambda: file.build_id)
    asked(file.section, ".modinfo")
    asked(lambda: ask(file.section(".BTF") or b""))
    asked(file.at, LINEAR, 16)
    asked(file.at, LINEAR + 96, 1 << 40)
    asked(lambda: file.symbols.places("vm_list"))
    asked(lambda: file.symbols.entries("linux_banner"))
    asked(lambda: file.symbols.values("__start_notes"))
    asked(lambda: file.symbols.covering(LINEAR + 70))


def _symbol_fields(data: bytes) -> Iterator[Fields]:
    order = ">" if data[5:6] == b"\2" else "<"
    yield from elf_fields(data)
    yield Fields(range(64, len(data) - 7, 8), 8, order)
    yield Fields(range(64, len(data) - 3, 4), 4, order)


@functools.cache
def _objects() -> tuple[bytes, ...]:
    names = ("book3s_hv_nested.o.xz", "kvm-hv.o.xz")
    return tuple(lzma.decompress((DATA / name).read_bytes()) for name in names)


def read_debug_file(data: bytes) -> None:
    """Read everything that the inspector reads of a debug file."""
    types = Dwarf(saved(data))
    for name in ("outer", "module", "list"):
        found = types.find_struct(name)
        if found is not None:
            types.size_of(found)
            for path in ("lock.slock", "inner.deep", "second", "list.another", "missing"):
                types.member(found, path)
    laid_out(types)


def laid_out(*types: Types) -> None:
    """Look up the structures of a profile that the types have."""
    there = [name for name in STRUCTS if any(one.find_struct(name) is not None for one in types)]
    layouts(types, there)


def _debug_fields(data: bytes) -> Iterator[Fields]:
    yield from elf_fields(data)
    yield Fields(range(64, len(data)), 1, "<")


def _kernel_types(order: str) -> BtfWriter:
    """Return all structures of a profile, with their members one after the other."""
    writer = BtfWriter(order)
    word = writer.integer("unsigned long", 8)

    def add(name: str, paths: Iterable[str]) -> tuple[int, int]:
        members, size = [], 0
        first = {path.partition(".")[0]: None for path in paths}
        for member in first:
            inner = [path[len(member) + 1 :] for path in paths if path.startswith(f"{member}.")]
            number, length = add("", inner) if inner else (word, 8)
            members.append((member, number, 8 * size))
            size += length
        return writer.struct(name, size, members), size

    for name, paths in STRUCTS.items():
        add(name, paths)
    return writer


@functools.cache
def _blobs() -> tuple[bytes, ...]:
    found = []
    for order in ORDERS:
        base = vmlinux(order)
        module = base.split()
        module.struct("kvm_nested_guest", 96, [("b", 5, 0), ("", 6, 64), ("", 7, 64)])
        blobs = ((base, module), (base, BtfWriter(order)), (_kernel_types(order), BtfWriter(order)))
        found += [joined(one.data(), other.data()) for one, other in blobs]
    return tuple(found)


def read_types(data: bytes) -> None:
    """Read both blobs; the first four bytes say where the module's blob begins."""
    base, module = data[4 : cut_at(data)], data[cut_at(data) :]
    asked(ask, base)
    asked(lambda: ask(module, Btf(base)))
    laid_out(Btf(module, Btf(base)), Btf(base))


def _btf_fields(data: bytes) -> Iterator[Fields]:
    order = ">" if data[4:6] == b"\xeb\x9f" else "<"
    for begin in (4, cut_at(data)):
        yield Fields(range(begin + 4, begin + 24, 4), 4, order)
        yield Fields(range(begin + 24, len(data) - 3, 4), 4, order)


@functools.cache
def _tables() -> tuple[bytes, ...]:
    rows = [(f"do_page_filler_{i}", LINEAR + 0x1000 + 64 * i) for i in range(SYMBOLS)]
    rows[9] = ("kvm_vm_list", rows[9][1])
    # a table whose entries count from their own address lies between its symbols
    own = [(name, value if i < 300 else value + (1 << 20)) for i, (name, value) in enumerate(rows)]
    forms = [Form(), Form("percpu"), Form("absolute", True, 0), Form("base", True, 4, 8, ">")]
    made = [write(rows, form, PLACE) for form in forms]
    return (*made, write(own, Form("place", alignment=4), PLACE))


def read_symbols(data: bytes) -> None:
    """Find, decode and query every symbol table in some memory."""
    with pytest.MonkeyPatch.context() as patch:
        # chunks of the size of the inputs
        patch.setattr(kallsyms, "CHUNK", CHUNK)
        _read_symbols(kallsyms.Window(of_segments([(PLACE, data)] if data else [])))


def _read_symbols(window: kallsyms.Window) -> None:
    for tokens in kallsyms.token_tables(window, (0, 1)):
        try:
            table = kallsyms.decode(window, tokens)
        except InspectorError:
            continue
        table.find(("kvm_vm_list", "absent"))
        for address in (table.first, table.last, LINEAR + 0x1100):
            table.before(address)


def _symbol_table_fields(data: bytes) -> Iterator[Fields]:
    digits = data.find(kallsyms.DIGITS)
    if digits < 0:
        return
    yield Fields(range(digits & ~1, min(len(data), digits + 1400) - 1, 2), 2, "<")
    yield Fields(range(max(0, digits - 600) & ~3, digits, 4), 4, "<")
    yield Fields(range((digits + 1000) & ~3, min(len(data), digits + 4400) - 3, 4), 4, "<")
    yield Fields((*range(0, 16, 4), *range(2396, 2420, 4), *range(4796, 4820, 4)), 4, "<")
    yield Fields(range(16, max(17, digits - 600), 37), 1, "<")


@functools.cache
def _profiles() -> tuple[bytes, ...]:
    found = []
    for size, order in ((1 << 12, "<"), (1 << 16, ">")):
        profile = build([], size, order).profile
        raw = profile.to_json() | {"anchors": {"vm_list": ["halt_poll_ns", -232]}}
        found.append(json.dumps(raw).encode())
    return tuple(found)


@functools.cache
def _host() -> tuple[AddressSpace, int]:
    image = build([])
    return image.memory, image.vm_list


def read_profile(data: bytes) -> None:
    """Read a profile, and a host's memory with it."""
    profile = Profile.from_json(data)
    profile.to_json()
    memory, vms = _host()
    collect(KernelSpace(memory, profile), vms)


def read_cache(data: bytes) -> None:
    """Read a profile from the cache."""
    kept = folder() / "inspector" / "layouts"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / f"{'00' * 20}.json").write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder()))
        list(cached_profiles())


def _infos() -> tuple[bytes, ...]:
    return tuple(
        struct.pack(order + "QQ", LINEAR | 64, 60)
        + bytes(48)
        + b"OSRELEASE=6.12\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=c000\n=\nx"
        for order in ORDERS
    )


def read_info(data: bytes) -> None:
    """Read VMCOREINFO out of memory in both byte orders."""
    memory = of_segments([(0, data)]) if data else of_segments([])
    symbols = {"vmcoreinfo_data": LINEAR, "vmcoreinfo_size": LINEAR | 8}
    for order in ORDERS:
        with suppress(InspectorError):
            release_and_page_size(read_vmcoreinfo(memory, symbols, order))


KERNELS = {
    "kernel file": Target(_kernel_files, read_kernel_file, binary(_symbol_fields)),
    "BTF": Target(_blobs, read_types, binary(_btf_fields)),
    "DWARF": Target(_objects, read_debug_file, binary(_debug_fields)),
    "kallsyms": Target(_tables, read_symbols, binary(_symbol_table_fields)),
    "layout profile": Target(_profiles, read_profile, json_tree),
    "cached profile": Target(_profiles, read_cache, json_tree),
    "VMCOREINFO": Target(_infos, read_info, binary(lambda data: [Fields((0, 8), 8, "<")])),
}
