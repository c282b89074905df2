"""Prove that a kernel is the host's own, and that its KVM can be inspected.

An L1 or L2 kernel of the same build lies in the same RAM with the same bytes.
Only the pointers and the page table of the host's kernel refer to the physical
memory in which they lie: those of a guest's kernel are addresses of the guest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

from inspector import pte
from inspector.errors import BadData, MemoryNotReadable, Stage, TargetNotSupported
from inspector.image.elf import build_ids_anywhere
from inspector.image.files import build_id_at
from inspector.image.profile import Profile
from inspector.image.vmcoreinfo import read_vmcoreinfo
from inspector.memory.interface import AddressSpace
from inspector.memory.numbers import addresses, integer
from inspector.regions import linear_to_physical
from inspector.structures.lists import list_entries
from inspector.structures.modules import find_modules, module_contents
from inspector.structures.radix import translate
from inspector.structures.space import KernelSpace

__all__ = [
    "KVM_MODULES",
    "Pause",
    "confirmed",
    "digest",
    "kvm_modules",
    "module_types",
    "not_loaded",
    "prove_mapped",
    "prove_own",
    "require_build_ids",
    "require_radix",
    "require_ring",
]

Pause = Callable[[], AbstractContextManager[None]]
"""Gives a block in which reads cause no stops of their own."""

MMU_FTR_TYPE_RADIX = 0x40
KVM_MODULES = ("kvm_hv", "kvm")
"""The modules whose types are needed, the most specific first."""

MODULE_BTF_LIMIT = 1 << 24
BANNER = b"Linux version "
PREVIOUS = 8
"""Offset of ``list_head.prev``."""


def require_radix(kernel: KernelSpace) -> None:
    """Check that the host uses the radix MMU.

    If ``cur_cpu_spec`` is not named, the kernel's page table decides: with
    the hash MMU it does not hold the linear map.

    Raises:
        TargetNotSupported: the host uses the hash MMU.
    """
    symbols = kernel.profile.symbols
    if "cur_cpu_spec" in symbols:
        cpu = kernel.pointer(symbols["cur_cpu_spec"])
        radix = kernel.field("cpu_spec", cpu, "mmu_features") & MMU_FTR_TYPE_RADIX
    else:
        first = kernel.memory.read(linear_to_physical(symbols["swapper_pg_dir"]), 8)
        radix = integer(first, pte.BYTE_ORDER) & pte.VALID
    if not radix:
        raise TargetNotSupported(
            "the host kernel runs with the hash MMU; KVM-HV has nested guests only on a radix host "
            "(POWER9 or later, booted without disable_radix)",
            Stage.RADIX,
        )


def kvm_modules(kernel: KernelSpace) -> dict[str, int]:
    """Return the addresses of ``struct module`` of KVM's modules.

    Raises:
        TargetNotSupported: KVM-HV is not loaded.
    """
    modules = find_modules(kernel, set(KVM_MODULES))
    missing = sorted(set(KVM_MODULES) - modules.keys())
    if missing:
        raise not_loaded(missing)
    return modules


def not_loaded(missing: Iterable[str], where: str = "") -> TargetNotSupported:
    """Return the error that says which of KVM's modules are missing."""
    return TargetNotSupported(
        f"KVM-HV is not loaded in the target (no module {' and no module '.join(missing)}{where}); "
        "load it there with 'modprobe kvm_hv'",
        Stage.KVM,
    )


def prove_own(kernel: KernelSpace, place: int) -> None:
    """Check that the kernel's own page table and list of modules refer to this memory.

    Args:
        kernel: its address space.
        place: a linear address at which the kernel was found.

    Raises:
        BadData: they refer to another memory, so this is a guest's kernel, or
            the remains of one.
    """
    prove_mapped(kernel, place)
    require_ring(kernel, "modules", kernel.profile.symbols["modules"])


def prove_mapped(kernel: KernelSpace, place: int) -> None:
    """Check that the kernel's own page table refers to this memory.

    Raises:
        BadData: it refers to another memory.
    """
    swapper = linear_to_physical(kernel.profile.symbols["swapper_pg_dir"])
    found = translate(kernel.memory, pte.Root(swapper, pte.PGD_BITS), addresses([place]))
    if not found.known[0] or int(found.physical[0]) != linear_to_physical(place):
        where = f"to physical {int(found.physical[0]):#x}" if found.known[0] else "nowhere"
        raise BadData(
            f"its page table at physical {swapper:#x} maps {place:#x} {where}, not to "
            f"{linear_to_physical(place):#x} where it was found"
        )


def require_ring(kernel: KernelSpace, name: str, head: int) -> None:
    """Check that the first entry of a list leads back to the list's head.

    Raises:
        BadData: it does not lead back.
    """
    try:
        back = kernel.pointer(kernel.pointer(head) + PREVIOUS)
    except MemoryNotReadable as error:
        raise BadData(f"its list {name} at {head:#x} cannot be followed: {error}") from error
    if back != head:
        raise BadData(f"its list {name} at {head:#x} leads back to {back:#x}")


def module_types(kernel: KernelSpace) -> dict[str, bytes]:
    """Return the type information of KVM's modules that the kernel keeps.

    ``module.btf_data`` is zero once a module is loaded; the kernel's copy is
    on the list ``btf_modules``.
    """
    head = kernel.profile.symbols.get("btf_modules")
    if head is None or not {"btf", "btf_module"} <= kernel.profile.structs.keys():
        return {}
    offset, size = kernel.profile.struct("btf").place("name")
    found: dict[str, bytes] = {}
    for entry in list_entries(kernel, head, "btf_module", "list"):
        btf = kernel.field("btf_module", entry, "btf")
        name = kernel.read(btf + offset, size).split(b"\0", 1)[0].decode("ascii", "replace")
        if name not in KVM_MODULES:
            continue
        length = kernel.field("btf", btf, "data_size")
        if length > MODULE_BTF_LIMIT:
            raise BadData(f"the type information of the module {name} has {length} bytes")
        found[name] = kernel.read(kernel.field("btf", btf, "data"), length)
        if len(found) == len(KVM_MODULES):
            break
    return found


def require_build_ids(kernel: KernelSpace) -> None:
    """Check that the layout was taken from the debug files of the modules that are loaded.

    A module's memory holds the note with its build ID.  A module that is not
    loaded is skipped.

    Raises:
        TargetNotSupported: another build of a module is loaded.
    """
    wanted = kernel.profile.module_build_ids
    for name, module in find_modules(kernel, set(wanted)).items():
        contents = b"".join(data for _, data in module_contents(kernel, module))
        found = build_ids_anywhere(contents, kernel.profile.byte_order)
        if wanted[name] not in found:
            raise TargetNotSupported(
                f"the module {name} that is loaded has the build ID {' or '.join(found) or 'none'},"
                f" and the debug file the layout comes from {wanted[name]}; give the debug file of "
                f"the {name.replace('_', '-')}.ko that is loaded"
            )


def digest(types: bytes) -> str:
    """Return the SHA-256 of a module's type information, which a profile keeps."""
    return hashlib.sha256(types).hexdigest()


def confirmed(memory: AddressSpace, profile: Profile, pause: Pause) -> Profile:
    """Return a ready-made profile with the target's VMCOREINFO, if the target's memory agrees.

    Raises:
        TargetNotSupported: it is not the profile of the target's kernel, or
            KVM cannot be inspected.
    """
    try:
        with pause():
            _compare(memory, profile)
            kernel = KernelSpace(memory, profile)
            text = read_vmcoreinfo(memory, profile.symbols, profile.byte_order)
            require_radix(kernel)
            prove_own(kernel, profile.symbols["linux_banner"])
            loaded = _kept_types(kernel) if profile.module_btf else {}
            if profile.module_build_ids:
                require_build_ids(kernel)
    except (BadData, MemoryNotReadable) as error:
        raise TargetNotSupported(
            f"the layout of Linux {profile.release} does not fit the target: {error}"
        ) from error
    for name, types in loaded.items():
        if profile.module_btf.get(name) != digest(types):
            raise TargetNotSupported(
                f"the layout of Linux {profile.release} was made for another build of "
                f"the module {name} than the one that is loaded in the target"
            )
    return replace(profile, vmcoreinfo=text)


def _kept_types(kernel: KernelSpace) -> dict[str, bytes]:
    """Return the modules' type information that the target has.

    makedumpfile 1.7 drops the kernel's copy from dumps of Linux 7.2 at level
    31; the build ID of vmlinux has been compared by then.
    """
    try:
        return module_types(kernel)
    except MemoryNotReadable:
        return {}


def _compare(memory: AddressSpace, profile: Profile) -> None:
    """Compare the banner and the build ID at the addresses that the profile names.

    Raises:
        BadData: one of them differs.
    """
    symbols = profile.symbols
    banner = BANNER + profile.release.encode() + b" "
    place = linear_to_physical(symbols["linux_banner"])
    if memory.read(place, len(banner)) != banner:
        raise BadData(f"its banner is not at physical {place:#x}")
    notes = symbols.get("__start_notes")
    if notes is not None:
        actual = build_id_at(memory, notes, profile.byte_order)
        if actual != profile.build_id:
            raise BadData(
                f"the build ID at physical {linear_to_physical(notes):#x} is "
                f"{actual or 'not there'}, not {profile.build_id or 'none'}"
            )
