"""The sources from which a target's kernel is described, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inspector.errors import InspectorError, Stage, TargetNotSupported
from inspector.image.cache import cached_profiles, keep, used
from inspector.image.elf import ElfFile
from inspector.image.files import debug_package, profile_from_files
from inspector.image.profile import PROFILE_LIMIT, Profile
from inspector.kernel.discover import FoundKernel, find_kernel
from inspector.kernel.host import Pause, confirmed
from inspector.memory.interface import AddressSpace
from inspector.options import Options
from inspector.storage import contents_of

__all__ = ["DescribedKernel", "describe_kernel"]


@dataclass(frozen=True)
class DescribedKernel:
    """A profile, its source, and the kernels that were found and are not the host's."""

    profile: Profile
    source: str
    rejected: tuple[str, ...] = ()


def describe_kernel(
    memory: AddressSpace, options: Options, vmcoreinfo: str = "", pause: Pause = nullcontext
) -> DescribedKernel:
    """Return the profile of the kernel that runs in a physical memory.

    Args:
        memory: the target's physical memory.
        options: the files that the user gave, which are compared with the target.
        vmcoreinfo: the VMCOREINFO that a dump contains, or empty.
        pause: gives a block in which reads cause no stops of their own.

    Raises:
        InspectorError: no description fits, or KVM cannot be inspected.
    """
    if options.layout is not None:
        profile = confirmed(memory, _from_file(options.layout), pause)
        return DescribedKernel(profile, f"the layout {options.layout}")

    @cache
    def searched() -> int:
        try:
            return find_kernel(memory, vmcoreinfo, pause).place
        except InspectorError:
            return 0

    if options.kernel or options.modules:
        return DescribedKernel(_from_files(memory, options, pause, searched), "files")
    cached = _from_cache(memory, options.debug_file, pause)
    if cached is not None:
        return DescribedKernel(cached, "the cache")
    found = find_kernel(memory, vmcoreinfo, pause, options.debug_file)
    if found.profile is not None:
        keep(found.profile)
        file = f" and {found.debug_file}" if found.debug_file else ""
        return DescribedKernel(found.profile, f"the target's memory{file}", found.rejected)
    try:
        known = _from_files(memory, options, pause, lambda: found.place)
        return DescribedKernel(known, "files", found.rejected)
    except TargetNotSupported as error:
        raise TargetNotSupported(_what_to_get(found), Stage.TYPES) from error


def _from_file(path: Path) -> Profile:
    return Profile.from_json(contents_of(path, PROFILE_LIMIT))


def _from_files(
    memory: AddressSpace, options: Options, pause: Pause, elsewhere: Callable[[], int]
) -> Profile:
    profile = profile_from_files(
        memory, options.kernel, options.modules, options.debug_file, elsewhere
    )
    profile = confirmed(memory, profile, pause)
    keep(profile)
    return profile


def _from_cache(memory: AddressSpace, debug_file: Path | None, pause: Pause) -> Profile | None:
    """Return the cached profile that fits; if a debug file is given, one that was made from it."""
    build_id = ElfFile(debug_file).build_id if debug_file else None
    for profile in cached_profiles():
        if build_id is not None and profile.module_build_ids.get("kvm_hv") != build_id:
            continue
        try:
            known = confirmed(memory, profile, pause)
        except TargetNotSupported:
            continue
        used(profile)
        return known
    return None


def _what_to_get(found: FoundKernel) -> str:
    return (
        f"the host runs Linux {found.release}, and {found.missing}; give --debug-file with the "
        f"debug file of its module kvm-hv ({debug_package(found.release)}), or --layout with its "
        "layout profile, or --kernel and --modules with its own files where those have BTF"
    )
