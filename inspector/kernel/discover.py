"""Find the host's kernel in physical memory, without its files.

The search for its symbol table begins where kernels usually lie: from physical
0 on, in the read-only data after the text.  The table is used once the kernel
is proved to be the host's own.  The types are then read from memory too: the
kernel's between ``__start_BTF`` and ``__stop_BTF``, and those of KVM's modules
from the kernel's copies.  If the table does not name the kernel's data, the
data is found by its form, and the types come from a debug file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inspector import pte
from inspector.errors import BadData, MemoryNotReadable, Stage, TargetNotSupported
from inspector.image.btf import Btf
from inspector.image.dwarf import Dwarf
from inspector.image.files import build_id_at, debug_files
from inspector.image.kallsyms import CHUNK, Kallsyms, Tokens, Window, decode, token_tables
from inspector.image.profile import OPTIONAL_SYMBOLS, SYMBOLS, Profile, layouts
from inspector.image.vmcoreinfo import PAGE_SIZES, facts, read_vmcoreinfo, release_and_page_size
from inspector.kernel.by_form import IMAGE, banner_near, data_symbols, modules_head
from inspector.kernel.host import (
    KVM_MODULES,
    Pause,
    digest,
    kvm_modules,
    module_types,
    prove_mapped,
    prove_own,
    require_build_ids,
    require_radix,
    require_ring,
)
from inspector.memory.interface import AddressSpace
from inspector.memory.numbers import integer
from inspector.regions import LINEAR_MAP, linear_to_physical
from inspector.structures.space import KernelSpace

__all__ = ["FoundKernel", "find_kernel"]

LIKELY = (*range(15, 32), *range(15))
"""Chunks of a kernel in the order of the search; a symbol table can lie as early as the first."""

BASES = ((CHUNK, 1 << 34), (1 << 16, 1 << 30))
"""Step and end, in bytes, of each search for a kernel that was not loaded at physical 0."""

BASES_LIMIT = 16
HEAD = 32
NOPS = (bytes.fromhex("60000000") * 8, bytes.fromhex("00000060") * 8)
"""The first bytes of a running kernel, in either byte order: its entry is patched to nops."""

BTF_LIMIT = 1 << 26
BANNER_LENGTH = 512
SHOWN = 3
UNNAMED = "its kallsyms hold no data symbols (CONFIG_KALLSYMS_ALL)"
FIRST_STRUCTS = ("btf", "btf_module", "cpu_spec", "list_head", "mod_kallsyms", "module")
SELF_REFERENCES = ("slab_caches",)
"""Lists whose entries lie in the linear map, so that they can be followed on every host."""

_RELEASE = re.compile(rb"Linux version (\S+) \(")


@dataclass(frozen=True, kw_only=True)
class FoundKernel:
    """The host's kernel.

    ``place`` is the physical address at which it begins, by its symbols.
    ``rejected`` says which other kernels were found, and why they are not the
    host's.  ``profile`` is None if the kernel's memory does not hold enough
    for one, and ``missing`` then says what is missing.  ``debug_file`` is the
    file that the types come from, None if they come from memory.
    """

    release: str
    place: int
    rejected: tuple[str, ...] = ()
    profile: Profile | None = None
    missing: str = ""
    debug_file: Path | None = None


def find_kernel(
    memory: AddressSpace,
    vmcoreinfo: str = "",
    pause: Pause = nullcontext,
    debug_file: Path | None = None,
) -> FoundKernel:
    """Find the host's kernel.

    Args:
        memory: the target's physical memory.
        vmcoreinfo: the VMCOREINFO that a dump contains, or empty.
        pause: gives a block in which reads cause no stops of their own.
        debug_file: the debug file of kvm-hv.ko to take the types from.  If it
            is None and the kernel has no types in memory, the usual places of
            this host are searched for one.

    Raises:
        TargetNotSupported: no host kernel was found, or its KVM cannot be
            inspected, or the debug file is not that of the loaded module.
    """
    rejected: list[str] = []
    seen: set[int] = set()
    for window, tokens in _token_places(memory, vmcoreinfo):
        if tokens.place in seen:
            continue
        seen.add(tokens.place)
        try:
            found = _host(window, decode(window, tokens), pause, debug_file)
        except (BadData, MemoryNotReadable) as error:
            rejected.append(f"kernel symbols at physical {tokens.place:#x}: {error}")
            continue
        return replace(found, rejected=tuple(rejected))
    met = "; ".join(rejected[:SHOWN]) or "no symbol table of a kernel is there"
    raise TargetNotSupported(
        f"the host kernel was not found in the first {(IMAGE * CHUNK) >> 20} MiB of the target's "
        f"memory, nor where another one begins: {met}; if the machine has booted Linux, "
        "give --kernel VMLINUX and --modules DIR, or --layout FILE",
        Stage.KERNEL,
    )


def _token_places(memory: AddressSpace, vmcoreinfo: str) -> Iterator[tuple[Window, Tokens]]:
    """Yield candidates for the tokens of a kernel's symbol table, the likeliest first."""
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
    """Yield the physical addresses at which a kernel may begin that was not loaded at 0.

    There are at most ``BASES_LIMIT``, because each costs a search of the memory after it.
    """
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


def _host(window: Window, table: Kallsyms, pause: Pause, debug_file: Path | None) -> FoundKernel:
    """Prove that a kernel is the host's, and describe it.

    Raises:
        BadData: it is not the host's.
        MemoryNotReadable: it leads to memory that is missing.
        TargetNotSupported: it is the host's, but its KVM cannot be inspected.
    """
    memory = window.memory
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
        return _unnamed(window, table, pause, debug_file)

    banner = memory.read(linear_to_physical(symbols["linux_banner"]), BANNER_LENGTH)
    match = _RELEASE.match(banner)
    if match is None:
        raise BadData(f"no banner is at its linux_banner {symbols['linux_banner']:#x}")
    build_id = ""
    if "__start_notes" in symbols:
        build_id = build_id_at(memory, symbols["__start_notes"], table.byte_order)
    types = _types(window, symbols)
    # _with_vmcoreinfo replaces the page size and the VMCOREINFO, which are not known yet.
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
    found = _described(profile, begin, types, of_modules)
    return _by_debug_file(memory, found, profile, pause, debug_file)


def _described(
    profile: Profile, place: int, types: Btf | None, of_modules: dict[str, bytes]
) -> FoundKernel:
    if types is None:
        return FoundKernel(
            release=profile.release,
            place=place,
            missing="it carries no BTF (CONFIG_DEBUG_INFO_BTF)",
        )
    blobs = [Btf(of_modules[name], types) for name in KVM_MODULES if name in of_modules]
    if types.find_struct("kvm_nested_guest") is None and len(blobs) < len(KVM_MODULES):
        absent = ", ".join(name for name in KVM_MODULES if name not in of_modules)
        return FoundKernel(
            release=profile.release, place=place, missing=f"it keeps no BTF of the modules {absent}"
        )
    whole = replace(
        _needed(profile),
        structs=layouts([*blobs, types]),
        module_btf={name: digest(data) for name, data in of_modules.items()},
    )
    return FoundKernel(release=profile.release, place=place, profile=whole)


def _types(window: Window, symbols: dict[str, int]) -> Btf | None:
    begin, end = symbols.get("__start_BTF", 0), symbols.get("__stop_BTF", 0)
    if not 0 < end - begin <= BTF_LIMIT:
        return None
    return Btf(window.read(linear_to_physical(begin), end - begin))


def _unnamed(window: Window, table: Kallsyms, pause: Pause, debug_file: Path | None) -> FoundKernel:
    """Describe a kernel whose symbol table does not name its data.

    Raises:
        BadData: it is not the host's.
    """
    memory = window.memory
    begin = linear_to_physical(table.first)
    banner = banner_near(window, table.place)
    if banner is None:
        return FoundKernel(
            release="of an unknown release", place=begin, missing=f"{UNNAMED}, and it has no banner"
        )
    try:
        symbols = data_symbols(window, table, banner)
    except BadData as error:
        return FoundKernel(release=banner.release, place=begin, missing=f"{UNNAMED}, and {error}")
    build_id = ""
    if "__start_notes" in symbols:
        build_id = build_id_at(memory, symbols["__start_notes"], table.byte_order)
    profile = _with_vmcoreinfo(
        memory,
        Profile(
            release=banner.release,
            build_id=build_id,
            byte_order=table.byte_order,
            page_size=1 << 12,
            vmcoreinfo="",
            symbols=symbols,
            structs={},
        ),
    )
    kernel = KernelSpace(memory, profile)
    require_radix(kernel)
    prove_mapped(kernel, LINEAR_MAP | table.place)
    found = FoundKernel(release=banner.release, place=begin, missing=UNNAMED)
    return _by_debug_file(memory, found, profile, pause, debug_file)


def _by_debug_file(
    memory: AddressSpace, found: FoundKernel, profile: Profile, pause: Pause, given: Path | None
) -> FoundKernel:
    """Take the types from the given debug file or, if they are missing, from one on this host.

    Args:
        memory: the target's physical memory.
        found: the kernel, as it was found in memory.
        profile: its symbols.
        pause: gives a block in which reads cause no stops of their own.
        given: the debug file that the user gave, or None.

    Raises:
        TargetNotSupported: no debug file describes the modules that are loaded.
    """
    if given is not None:
        return _with_types(memory, found, profile, pause, given)
    refused: TargetNotSupported | None = None
    for path in debug_files(found.release) if found.profile is None else ():
        try:
            return _with_types(memory, found, profile, pause, path)
        except TargetNotSupported as error:
            refused = error
    if refused is not None:
        raise refused
    return found


def _with_types(
    memory: AddressSpace, found: FoundKernel, profile: Profile, pause: Pause, path: Path
) -> FoundKernel:
    try:
        types = Dwarf(path)
        if not types.build_id:
            raise BadData("it has no build ID to compare with that of the loaded module")
        whole = replace(
            profile, structs=layouts([types]), module_build_ids={"kvm_hv": types.build_id}
        )
        if "modules" not in profile.symbols:
            head = modules_head(
                KernelSpace(memory, whole), LINEAR_MAP | found.place, set(KVM_MODULES), pause
            )
            whole = replace(whole, symbols={**whole.symbols, "modules": head})
        with pause():
            kernel = KernelSpace(memory, whole)
            prove_own(kernel, whole.symbols["linux_banner"])
            kvm_modules(kernel)
            require_build_ids(kernel)
    except (BadData, MemoryNotReadable) as error:
        raise TargetNotSupported(
            f"Linux {found.release} in the target cannot be described with {path}: {error}"
        ) from error
    return replace(found, profile=_needed(whole), missing="", debug_file=path)


def _needed(profile: Profile) -> Profile:
    """Return a profile without the symbols that were only needed to find it."""
    wanted = {*SYMBOLS, *OPTIONAL_SYMBOLS, "vm_list"}
    symbols = {name: value for name, value in profile.symbols.items() if name in wanted}
    return replace(profile, symbols=symbols)


def _with_vmcoreinfo(memory: AddressSpace, profile: Profile) -> Profile:
    text = read_vmcoreinfo(memory, profile.symbols, profile.byte_order)
    if not text:
        return replace(profile, page_size=_page_size(memory, profile))
    release, page_size = release_and_page_size(text)
    if release != profile.release:
        raise BadData(f"its VMCOREINFO is of Linux {release}, its banner of {profile.release}")
    return replace(profile, vmcoreinfo=text, page_size=page_size)


def _page_size(memory: AddressSpace, profile: Profile) -> int:
    """Return the size in bytes of the page that holds a loaded module, by the page table."""

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
        entry = word(table + 8 * ((target >> shift) & ((1 << bits) - 1)), pte.BYTE_ORDER)
        if not entry & pte.VALID:
            break
        if entry & pte.LEAF and (1 << shift) in PAGE_SIZES:
            return 1 << shift
        if entry & pte.LEAF:
            break
        table, bits = entry & pte.NEXT_TABLE_MASK, entry & pte.NEXT_BITS_MASK
    raise BadData(f"its page table does not map {target:#x}, the first on its list of modules")
