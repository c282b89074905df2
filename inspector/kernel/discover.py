"""Find the host's kernel in physical memory, with no file.

Its symbol table is looked for first where kernels lie: from physical 0 on,
in read-only data behind the text.  What it says is believed once the kernel
is proved to be the host's own; its types are then read from memory too, its
own between ``__start_BTF`` and ``__stop_BTF``, KVM's modules' from the
kernel's copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from inspector import pte
from inspector.errors import BadData, MemoryNotReadable, TargetNotSupported
from inspector.image.btf import Btf
from inspector.image.files import build_id_at
from inspector.image.kallsyms import CHUNK, Kallsyms, Tokens, Window, decode, token_tables
from inspector.image.profile import OPTIONAL_SYMBOLS, SYMBOLS, Profile, layouts
from inspector.image.vmcoreinfo import facts, read_vmcoreinfo, release_and_page_size
from inspector.kernel.host import (
    KVM_MODULES,
    Pause,
    digest,
    kvm_modules,
    module_types,
    prove_own,
    require_radix,
    require_ring,
)
from inspector.memory.base import AddressSpace, integer
from inspector.regions import LINEAR_MAP, linear_to_physical
from inspector.structures.space import KernelSpace

__all__ = ["Found", "find_kernel"]

IMAGE = 64
"""Chunks from a kernel's beginning in which its symbol table is looked for."""

LIKELY = (*range(15, 32), *range(15))
"""Chunks of a kernel in the order they are searched; symbol tables were seen from the first on."""

BASES = ((CHUNK, 1 << 34), (1 << 16, 1 << 30))
"""Steps and ends of the search for a kernel that was loaded elsewhere."""

BASES_LIMIT = 16
HEAD = 32
NOPS = (bytes.fromhex("60000000") * 8, bytes.fromhex("00000060") * 8)
"""How a kernel that runs begins, in either byte order: its entry is patched out."""

BTF_LIMIT = 1 << 26
BANNER_LENGTH = 512
SHOWN = 3
FIRST_STRUCTS = ("btf", "btf_module", "cpu_spec", "list_head", "mod_kallsyms", "module")
SELF_REFERENCES = ("slab_caches",)
"""A list whose entries lie in the linear map, so that it is there on every host."""

_RELEASE = re.compile(rb"Linux version (\S+) \(")


@dataclass(frozen=True)
class Found:
    """The host's kernel.

    ``place`` is the physical address its symbols say it begins at;
    ``rejected`` tells which other kernels were met, and why they are not the
    host's.  ``profile`` is None where the kernel does not carry enough, and
    ``missing`` then says what.
    """

    release: str
    place: int
    rejected: tuple[str, ...] = ()
    profile: Profile | None = None
    missing: str = ""


def find_kernel(memory: AddressSpace, vmcoreinfo: str = "", pause: Pause = nullcontext) -> Found:
    """Find the host's kernel.

    Args:
        memory: the target's physical memory.
        vmcoreinfo: the VMCOREINFO a dump carries, if it does.
        pause: gives a block in which reads cause no stops of their own.

    Raises:
        TargetNotSupported: there is none, or its KVM cannot be inspected.
    """
    rejected: list[str] = []
    seen: set[int] = set()
    for window, tokens in _token_places(memory, vmcoreinfo):
        if tokens.place in seen:
            continue
        seen.add(tokens.place)
        try:
            found = _host(memory, window, decode(window, tokens), pause)
        except (BadData, MemoryNotReadable) as error:
            rejected.append(f"kernel symbols at physical {tokens.place:#x}: {error}")
            continue
        return replace(found, rejected=tuple(rejected))
    met = "; ".join(rejected[:SHOWN]) or "no symbol table of a kernel is there"
    raise TargetNotSupported(
        f"the host kernel was not found in the first {IMAGE * CHUNK >> 20} MiB of the target's "
        f"memory, nor where another one begins: {met}; if the machine has booted Linux, "
        "give --kernel VMLINUX and --modules DIR, or --layout FILE"
    )


def _token_places(memory: AddressSpace, vmcoreinfo: str) -> Iterator[tuple[Window, Tokens]]:
    """Yield what may be the tokens of a kernel's symbol table, the likeliest first."""
    window = Window(memory)

    def tables(chunks: Iterable[int]) -> Iterator[tuple[Window, Tokens]]:
        return ((window, tokens) for tokens in token_tables(window, chunks))

    named = facts(vmcoreinfo).get("SYMBOL(kallsyms_token_table)", "")
    if re.fullmatch(r"[0-9a-f]{1,16}", named):
        chunk = linear_to_physical(int(named, 16)) // CHUNK
        yield from tables((chunk, chunk + 1))
    yield from tables(LIKELY)
    for base in _bases(memory):
        there = Window(memory)
        first = base // CHUNK
        chunks = [first + chunk for chunk in (*LIKELY, *range(len(LIKELY), IMAGE))]
        yield from ((there, tokens) for tokens in token_tables(there, chunks))
    yield from tables(range(len(LIKELY), IMAGE))


def _bases(memory: AddressSpace) -> Iterator[int]:
    """Yield where kernels begin that were not loaded at physical 0."""
    seen: set[int] = set()
    for step, end in BASES:
        where = np.arange(step, end, step, dtype=np.uint64)
        data, present = memory.read_many(where, HEAD)
        rows = present & np.any(
            [np.all(data == np.frombuffer(nops, np.uint8), axis=1) for nops in NOPS], axis=0
        )
        for base in where[rows].tolist():
            if base not in seen and len(seen) < BASES_LIMIT:
                seen.add(base)
                yield base


def _host(memory: AddressSpace, window: Window, table: Kallsyms, pause: Pause) -> Found:
    """Prove that a kernel is the host's, and describe it.

    Raises:
        BadData: it is not.
        MemoryNotReadable: it leads to memory that is not there.
        TargetNotSupported: it is, but its KVM cannot be inspected.
    """
    here = LINEAR_MAP | table.place
    begin, end = linear_to_physical(table.first), linear_to_physical(table.last)
    if not table.first <= here <= table.last:
        raise BadData(
            f"they say that their kernel lies at physical {begin:#x} to {end:#x}, "
            "so this is a copy in the memory of a guest"
        )
    wanted = (*SYMBOLS, *OPTIONAL_SYMBOLS, *SELF_REFERENCES, "__start_BTF", "__stop_BTF", "vm_list")
    symbols = {name: min(values) for name, values in table.find(wanted).items()}
    if not symbols.keys() >= set(SYMBOLS):
        release = _release_nearby(window, table.place)
        missing = "its kallsyms hold no data symbols (CONFIG_KALLSYMS_ALL)"
        return Found(release, begin, missing=missing)

    banner = memory.read(linear_to_physical(symbols["linux_banner"]), BANNER_LENGTH)
    match = _RELEASE.match(banner)
    if match is None:
        raise BadData(f"no banner is at its linux_banner {symbols['linux_banner']:#x}")
    build_id = ""
    if "__start_notes" in symbols:
        build_id = build_id_at(memory, symbols["__start_notes"], table.byte_order)
    types = _types(window, symbols)
    profile = Profile(
        release=match[1].decode("ascii", "replace"),
        build_id=build_id,
        byte_order=table.byte_order,
        page_size=1 << 12,
        vmcoreinfo="",
        symbols=symbols,
        structs=layouts([types], FIRST_STRUCTS) if types else {},
    )
    with pause():
        profile = _with_vmcoreinfo(memory, profile)
        kernel = KernelSpace(memory, profile)
        for name in SELF_REFERENCES:
            if name in symbols:
                require_ring(kernel, name, symbols[name])
        if types:
            require_radix(kernel)
        prove_own(kernel, here)
        of_modules = module_types(kernel)
        if types and "vm_list" not in symbols and of_modules.keys() < set(KVM_MODULES):
            kvm_modules(kernel)
    return _described(profile, begin, types, of_modules)


def _described(
    profile: Profile, place: int, types: Btf | None, of_modules: dict[str, bytes]
) -> Found:
    if types is None:
        return Found(profile.release, place, missing="it carries no BTF (CONFIG_DEBUG_INFO_BTF)")
    blobs = [Btf(of_modules[name], types) for name in KVM_MODULES if name in of_modules]
    if types.find_struct("kvm_nested_guest") is None and len(blobs) < len(KVM_MODULES):
        absent = ", ".join(name for name in KVM_MODULES if name not in of_modules)
        return Found(profile.release, place, missing=f"it keeps no BTF of the modules {absent}")
    wanted = {*SYMBOLS, *OPTIONAL_SYMBOLS, "vm_list"}
    whole = replace(
        profile,
        symbols={name: value for name, value in profile.symbols.items() if name in wanted},
        structs=layouts([*blobs, types]),
        module_btf={name: digest(data) for name, data in of_modules.items()},
    )
    return Found(profile.release, place, profile=whole)


def _types(window: Window, symbols: dict[str, int]) -> Btf | None:
    begin, end = symbols.get("__start_BTF", 0), symbols.get("__stop_BTF", 0)
    if not 0 < end - begin <= BTF_LIMIT:
        return None
    return Btf(window.read(linear_to_physical(begin), end - begin))


def _release_nearby(window: Window, place: int) -> str:
    """Return the release from the banner in the same read-only data as a symbol table."""
    for chunk in range(place // CHUNK, max(-1, place // CHUNK - 8), -1):
        match = _RELEASE.search(window.chunk(chunk))
        if match:
            return match[1].decode("ascii", "replace")
    return "of an unknown release"


def _with_vmcoreinfo(memory: AddressSpace, profile: Profile) -> Profile:
    text = read_vmcoreinfo(memory, profile.symbols, profile.byte_order)
    if not text:
        return replace(profile, page_size=_page_size(memory, profile))
    release, page_size = release_and_page_size(text)
    if release != profile.release:
        raise BadData(f"its VMCOREINFO is of Linux {release}, its banner of {profile.release}")
    return replace(profile, vmcoreinfo=text, page_size=page_size)


def _page_size(memory: AddressSpace, profile: Profile) -> int:
    """Return the size of the page that holds a loaded module, by the kernel's page table."""

    def word(physical: int, order: str) -> int:
        return integer(memory.read(physical, 8), order)

    symbols = profile.symbols
    target = word(linear_to_physical(symbols["modules"]), profile.byte_order)
    table, bits = linear_to_physical(symbols["swapper_pg_dir"]), pte.PGD_BITS
    shift = pte.TREE_BITS
    for widths in pte.SUPPORTED_BITS:
        if bits not in widths:
            break
        shift -= bits
        entry = word(table + 8 * (target >> shift & (1 << bits) - 1), pte.BYTE_ORDER)
        if not entry & pte.VALID:
            break
        if entry & pte.LEAF:
            return 1 << shift
        table, bits = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
    raise BadData(f"its page table does not map {target:#x}, the first on its list of modules")
