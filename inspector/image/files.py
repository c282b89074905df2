"""Find the kernel's files and prove that they belong to the target.

A candidate vmlinux belongs to the target if its banner and its build ID lie in
the target's memory at the addresses that its symbol table names.  Because the
addresses are fixed, the identical text of an L1 or L2 kernel elsewhere in the
same RAM cannot be mistaken for it.  A kernel that was loaded elsewhere
(kdump's) is accepted at the address where the caller has found the host's.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.image.btf import Btf
from inspector.image.dwarf import Dwarf
from inspector.image.elf import ElfFile, build_id_in
from inspector.image.profile import OPTIONAL_SYMBOLS, SYMBOLS, Profile, Types, layouts
from inspector.image.vmcoreinfo import read_vmcoreinfo, release_and_page_size
from inspector.memory.interface import AddressSpace
from inspector.regions import linear_to_physical

__all__ = ["SEARCH_VARIABLE", "build_id_at", "debug_files", "debug_package", "profile_from_files"]

SEARCH_VARIABLE = "INSPECTOR_KERNEL_PATH"
"""Directories, separated by colons, that are searched like ``/`` for kernel files."""

NOTES_LENGTH = 512
BANNER_LENGTH = 512
MODULES = ("kvm-hv", "kvm")
ANCHORS = ("halt_poll_ns", "kvm_rebooting", "kvm_debugfs_dir")
"""Data that kvm.ko exports, so every kernel has its address in memory."""

MODULE_FOLDER = "kernel/arch/powerpc/kvm"
_RELEASE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,64}")
RELEASE_SHOWN = 40
_PACKINGS = ("", ".xz", ".zst", ".gz")


def profile_from_files(
    memory: AddressSpace,
    kernel: Path | None = None,
    modules: Path | None = None,
    debug_file: Path | None = None,
    elsewhere: Callable[[], int] = lambda: 0,
) -> Profile:
    """Build the profile of the kernel that runs in a physical memory.

    Args:
        memory: the target's physical memory.
        kernel: its vmlinux, or None to look in the usual places of this host.
        modules: a modules tree or a folder with kvm.ko and kvm-hv.ko, or
            None to look beside the kernel and in the usual places.
        debug_file: the debug file of kvm-hv.ko, used where the kernel has no
            BTF, or None to look in the usual places.
        elsewhere: called if no kernel lies at the address in its file;
            returns the physical address at which the host's kernel begins,
            0 if it is not known.

    Raises:
        TargetNotSupported: no fitting kernel was found, or nothing describes its types.
        BadData: a given file is not what it should be.
    """
    image, moved = _given(memory, kernel, elsewhere) if kernel else _found(memory, elsewhere)
    symbols = {name: _symbol(image, name) + moved for name in SYMBOLS}
    for name in OPTIONAL_SYMBOLS:
        values = image.symbols.values(name)
        if len(values) == 1:
            symbols[name] = values[0] + moved
    vmcoreinfo = read_vmcoreinfo(memory, symbols, image.byte_order)
    release, page_size = release_and_page_size(vmcoreinfo)
    files = {name: _module(name, release, image.path, modules) for name in MODULES}
    base = image.section(".BTF")
    described = _by_btf(base, files) if base else _by_debug_file(release, files, debug_file)
    return Profile(
        release=release,
        build_id=image.build_id,
        byte_order=image.byte_order,
        page_size=page_size,
        vmcoreinfo=vmcoreinfo,
        symbols=symbols,
        structs=layouts(described.types),
        module_btf=described.digests,
        module_build_ids=described.build_ids,
        anchors=described.anchors,
    )


class _Described(NamedTuple):
    """Type information, the most specific first, and what a profile remembers of it."""

    types: Sequence[Types]
    digests: Mapping[str, str]
    build_ids: Mapping[str, str]
    anchors: Mapping[str, tuple[str, int]]


def _by_btf(base: bytes, files: Mapping[str, ElfFile]) -> _Described:
    vmlinux = Btf(base)
    blobs = []
    digests = {}
    for name, module in files.items():
        section = module.section(".BTF")
        if section is not None:
            blobs.append(Btf(section, vmlinux))
            # BTF with a base of its own is changed when the module is loaded, so its digest
            # would never match.
            if module.section(".BTF.base") is None:
                digests[name.replace("-", "_")] = hashlib.sha256(section).hexdigest()
    return _Described([*blobs, vmlinux], digests, {}, {})


def _by_debug_file(release: str, files: Mapping[str, ElfFile], given: Path | None) -> _Described:
    """Take the types from the debug file of the very kvm-hv.ko that was given or found.

    A kernel without BTF may have no data symbols in memory either, so the
    place of ``vm_list`` is kept as an anchor.
    """
    build_id = files["kvm-hv"].build_id
    anchor = _anchor(files["kvm"], "vm_list")
    for path in (given,) if given else debug_files(release):
        types = Dwarf(path)
        if types.build_id == build_id:
            anchors = {"vm_list": anchor} if anchor else {}
            return _Described([types], {}, {"kvm_hv": build_id} if build_id else {}, anchors)
        if given:
            raise TargetNotSupported(
                f"{given} (build ID {types.build_id or 'none'}) is not the debug file of "
                f"kvm-hv.ko of Linux {release} (build ID {build_id or 'none'})"
            )
    raise TargetNotSupported(
        f"Linux {release} carries no BTF; give --debug-file with the debug file of its module "
        f"kvm-hv ({debug_package(release)}), or --layout with its layout profile"
    )


def _module(name: str, release: str, kernel: Path, given: Path | None) -> ElfFile:
    module = ElfFile(_module_file(name, release, kernel, given))
    if f"vermagic={release} ".encode() not in (module.section(".modinfo") or b""):
        raise BadData(
            f"{module.path} was not built for the running kernel {release}; "
            "give --modules with the modules of that kernel"
        )
    return module


def _anchor(module: ElfFile, name: str) -> tuple[str, int] | None:
    """Return an exported symbol of a symbol's section, and how many bytes lie between them."""
    for section, value in module.symbols.places(name):
        for exported in ANCHORS:
            if not module.symbols.places(f"__ksymtab_{exported}"):
                continue
            for other, at in module.symbols.places(exported):
                if other == section:
                    return exported, value - at
    return None


def debug_package(release: str) -> str:
    """Say where Debian has the debug file of kvm-hv."""
    return (
        f"Debian: usr/lib/debug/lib/modules/{release}/{MODULE_FOLDER}/kvm-hv.ko "
        f"of the package linux-image-{release}-dbg"
    )


def _symbol(image: ElfFile, name: str) -> int:
    values = image.symbols.values(name)
    if len(values) != 1:
        how = "no" if not values else f"{len(values)} different"
        raise BadData(f"{image.path} has {how} symbols named {name}; is it a complete vmlinux?")
    return values[0]


def _moved(image: ElfFile, begin: int) -> int:
    """Return the distance in bytes from a kernel's address in its file to ``begin``.

    ``begin`` is the physical address at which it begins, 0 if not known.
    """
    text = image.symbols.values("_text")
    return begin - linear_to_physical(text[0]) if begin and len(text) == 1 else 0


def _matches(memory: AddressSpace, image: ElfFile, moved: int = 0) -> bool:
    """Compare the banner and the build ID in the target's memory with the file's."""
    banner = _text_at(image, "linux_banner")
    if banner is None:
        return False
    address, text = banner
    try:
        if memory.read(linear_to_physical(address + moved), len(text)) != text:
            return False
        for notes in image.symbols.values("__start_notes"):
            if build_id_at(memory, notes + moved, image.byte_order) != image.build_id:
                return False
    except MemoryNotReadable:
        return False
    return True


def build_id_at(memory: AddressSpace, notes: int, byte_order: str) -> str:
    """Return the build ID among the notes at a linear address of a kernel in memory."""
    return build_id_in(memory.read(linear_to_physical(notes), NOTES_LENGTH), byte_order)


def _text_at(image: ElfFile, symbol: str) -> tuple[int, bytes] | None:
    """Return the address of a string and the string with its NUL, as the file has them."""
    for address in image.symbols.values(symbol):
        data = image.at(address, BANNER_LENGTH) or b""
        text, end, _ = data.partition(b"\0")
        if text and end:
            return address, text + end
    return None


def _given(memory: AddressSpace, kernel: Path, elsewhere: Callable[[], int]) -> tuple[ElfFile, int]:
    """Return the given file if it is the target's kernel, and how far the kernel was moved."""
    image = ElfFile(kernel)
    if _matches(memory, image):
        return image, 0
    moved = _moved(image, elsewhere())
    if moved and _matches(memory, image, moved):
        return image, moved
    banner = _text_at(image, "linux_banner")
    why = (
        f"its banner is not at physical address {linear_to_physical(banner[0]):#x}"
        if banner
        else ("it has no symbol linux_banner")
    )
    raise TargetNotSupported(
        f"{kernel} (build ID {image.build_id or 'none'}) is not the kernel that runs in the "
        f"target: {why}; give the vmlinux of the host kernel"
    )


def _found(memory: AddressSpace, elsewhere: Callable[[], int]) -> tuple[ElfFile, int]:
    """Return the file of the target's kernel on this host, and how far the kernel was moved."""
    tried = []
    for path in _kernel_candidates():
        try:
            image = ElfFile(path)
            if _matches(memory, image):
                return image, 0
            moved = _moved(image, elsewhere())
            if moved and _matches(memory, image, moved):
                return image, moved
        except InspectorError:
            continue
        tried.append(str(path))
    looked = f"; tried {', '.join(tried)}" if tried else ""
    raise TargetNotSupported(
        "the kernel that runs in the target was not found on this host"
        f"{looked}; give --kernel VMLINUX and --modules DIR, or set {SEARCH_VARIABLE}"
    )


def _roots() -> list[Path]:
    extra = os.environ.get(SEARCH_VARIABLE, "")
    return [Path(part) for part in extra.split(":") if part] + [Path("/")]


def _kernel_candidates() -> Iterator[Path]:
    patterns = [
        pattern + packing
        for pattern in (
            "vmlinux",
            "vmlinuz",
            "boot/vmlinu[xz]*",
            "usr/lib/debug/boot/vmlinux*",
            "usr/lib/debug/lib/modules/*/vmlinux",
            "usr/lib/modules/*/vmlinu[xz]",
            "lib/modules/*/vmlinu[xz]",
            "lib/modules/*/build/vmlinux",
        )
        for packing in (_PACKINGS if not pattern.endswith("*") else ("",))
    ]
    seen = set()
    for root in _roots():
        for pattern in patterns:
            for path in sorted(root.glob(pattern)):
                resolved = path.resolve()
                if resolved not in seen and path.is_file():
                    seen.add(resolved)
                    yield path


def _folder_of(release: str) -> str:
    """Return a release as the name of its folders.

    The release was read from a target, so it may be any text, even a path.

    Raises:
        TargetNotSupported: no kernel has such a name.
    """
    if not _RELEASE.fullmatch(release):
        raise TargetNotSupported(
            f"the kernel in the target calls itself {release[:RELEASE_SHOWN]!r}, which cannot name "
            "a folder of its files; give --debug-file or --layout"
        )
    return release


def debug_files(release: str) -> Iterator[Path]:
    """Yield the debug files of a kernel's kvm-hv in the usual places of this host.

    Raises:
        TargetNotSupported: no kernel has a release of this name.
    """
    for root in _roots():
        folder = root / "usr/lib/debug/lib/modules" / _folder_of(release) / MODULE_FOLDER
        for suffix in (".ko", ".ko.debug"):
            for packing in _PACKINGS:
                path = folder / f"kvm-hv{suffix}{packing}"
                if path.is_file():
                    yield path


def _module_file(name: str, release: str, kernel: Path, given: Path | None) -> Path:
    names = [f"{name}.ko{packing}" for packing in _PACKINGS]
    folder_name = _folder_of(release)
    if given is not None:
        places = [given, given / "lib/modules" / folder_name, given / folder_name]
    else:
        beside = [parent / "lib/modules" / folder_name for parent in list(kernel.parents)[:4]]
        places = [kernel.parent, *beside]
        places += [root / "usr/lib/modules" / folder_name for root in _roots()]
        places += [root / "lib/modules" / folder_name for root in _roots()]
    for place in places:
        for folder in (place, place / MODULE_FOLDER):
            for file in names:
                if (folder / file).is_file():
                    return folder / file
    where = given if given is not None else "the usual places of this host"
    raise TargetNotSupported(
        f"{names[0]} of kernel {release} was not found in {where}; "
        "give --modules with a modules tree or a folder that holds kvm.ko and kvm-hv.ko"
    )
