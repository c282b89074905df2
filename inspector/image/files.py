"""Find the kernel's files and prove that they belong to the target.

A candidate vmlinux is the target's when the banner and the notes that it
says lie in its read-only data do lie there in the target's memory.  The
place is fixed by the symbol table, so the identical text of an L1 or L2
kernel elsewhere in the same RAM cannot be taken for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.image.btf import Btf
from inspector.image.elf import ElfFile, build_id_in
from inspector.image.profile import SYMBOLS, Profile, layouts
from inspector.memory.base import AddressSpace, integer
from inspector.regions import linear_to_physical

__all__ = ["SEARCH_VARIABLE", "profile_from_files"]

SEARCH_VARIABLE = "INSPECTOR_KERNEL_PATH"
"""Directories, separated by colons, that are searched like ``/`` for kernel files."""

NOTES_LENGTH = 512
BANNER_LENGTH = 512
VMCOREINFO_LIMIT = 1 << 16
MODULES = ("kvm-hv", "kvm")
_PACKINGS = ("", ".xz", ".zst", ".gz")


def profile_from_files(
    memory: AddressSpace, kernel: Path | None = None, modules: Path | None = None
) -> Profile:
    """Build the profile of the kernel that runs in a physical memory.

    Args:
        memory: the target's physical memory.
        kernel: its vmlinux, or None to look in the usual places of this host.
        modules: a modules tree or a folder with kvm.ko and kvm-hv.ko, or
            None to look beside the kernel and in the usual places.

    Raises:
        TargetNotSupported: no fitting kernel was found, or it has no BTF.
        BadData: a given file is not what it should be.
    """
    image = _given(memory, kernel) if kernel else _found(memory)
    symbols = {name: _symbol(image, name) for name in SYMBOLS}
    vmcoreinfo = _vmcoreinfo(memory, image, symbols)
    facts = dict(line.split("=", 1) for line in vmcoreinfo.splitlines() if "=" in line)
    try:
        release, page_size = facts["OSRELEASE"], int(facts["PAGESIZE"])
    except (KeyError, ValueError) as error:
        raise BadData(
            f"the kernel's VMCOREINFO in memory has no usable {error}; "
            "the machine may not have booted far enough"
        ) from error
    base = image.section(".BTF")
    if base is None:
        raise TargetNotSupported(
            f"{image.path} has no .BTF section (kernel {release}); "
            "a kernel built with CONFIG_DEBUG_INFO_BTF is needed"
        )
    vmlinux = Btf(base)
    blobs = []
    for name in MODULES:
        module = ElfFile(_module_file(name, release, image.path, modules))
        if f"vermagic={release} ".encode() not in (module.section(".modinfo") or b""):
            raise BadData(
                f"{module.path} was not built for the running kernel {release}; "
                "give --modules with the modules of that kernel"
            )
        section = module.section(".BTF")
        if section is not None:
            blobs.append(Btf(section, vmlinux))
    return Profile(
        release=release,
        build_id=image.build_id,
        byte_order=image.byte_order,
        page_size=page_size,
        vmcoreinfo=vmcoreinfo,
        symbols=symbols,
        structs=layouts([*blobs, vmlinux]),
    )


def _symbol(image: ElfFile, name: str) -> int:
    values = image.symbols.values(name)
    if len(values) != 1:
        how = "no" if not values else f"{len(values)} different"
        raise BadData(f"{image.path} has {how} symbols named {name}; is it a complete vmlinux?")
    return values[0]


def _vmcoreinfo(memory: AddressSpace, image: ElfFile, symbols: dict[str, int]) -> str:
    def word(address: int) -> int:
        return integer(memory.read(linear_to_physical(address), 8), image.byte_order)

    address = word(symbols["vmcoreinfo_data"])
    length = word(symbols["vmcoreinfo_size"])
    if not 0 < length <= VMCOREINFO_LIMIT:
        raise BadData(
            f"the kernel's VMCOREINFO at {address:#x} has a length of {length} bytes; "
            "the machine may not have booted far enough"
        )
    return memory.read(linear_to_physical(address), length).decode("ascii", "replace")


def _matches(memory: AddressSpace, image: ElfFile) -> bool:
    """Compare the banner and the build ID in the target's memory with the file's."""
    banner = _text_at(image, "linux_banner")
    if banner is None:
        return False
    address, text = banner
    try:
        if memory.read(linear_to_physical(address), len(text)) != text:
            return False
        for notes in image.symbols.values("__start_notes"):
            actual = memory.read(linear_to_physical(notes), NOTES_LENGTH)
            if build_id_in(actual, image.byte_order) != image.build_id:
                return False
    except MemoryNotReadable:
        return False
    return True


def _text_at(image: ElfFile, symbol: str) -> tuple[int, bytes] | None:
    """Return the address of a string and the string with its NUL, as the file has them."""
    for address in image.symbols.values(symbol):
        data = image.at(address, BANNER_LENGTH) or b""
        text, end, _ = data.partition(b"\0")
        if text and end:
            return address, text + end
    return None


def _given(memory: AddressSpace, kernel: Path) -> ElfFile:
    image = ElfFile(kernel)
    if _matches(memory, image):
        return image
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


def _found(memory: AddressSpace) -> ElfFile:
    tried = []
    for path in _kernel_candidates():
        try:
            image = ElfFile(path)
            if _matches(memory, image):
                return image
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


def _module_file(name: str, release: str, kernel: Path, given: Path | None) -> Path:
    names = [f"{name}.ko{packing}" for packing in _PACKINGS]
    if given is not None:
        places = [given, given / "lib/modules" / release, given / release]
    else:
        beside = [parent / "lib/modules" / release for parent in list(kernel.parents)[:4]]
        places = [kernel.parent, *beside]
        places += [root / "usr/lib/modules" / release for root in _roots()]
        places += [root / "lib/modules" / release for root in _roots()]
    for place in places:
        for folder in (place, place / "kernel/arch/powerpc/kvm"):
            for file in names:
                if (folder / file).is_file():
                    return folder / file
    where = given if given is not None else "the usual places of this host"
    raise TargetNotSupported(
        f"{names[0]} of kernel {release} was not found in {where}; "
        "give --modules with a modules tree or a folder that holds kvm.ko and kvm-hv.ko"
    )
