"""Where the description of a target's kernel comes from: the sources, in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inspector.errors import InspectorError, Step, TargetNotSupported
from inspector.image.cache import cached_profiles, keep, used
from inspector.image.elf import ElfFile
from inspector.image.files import debug_package, profile_from_files
from inspector.image.profile import PROFILE_LIMIT, Profile
from inspector.kernel.discover import Found, find_kernel
from inspector.kernel.host import Pause, confirmed
from inspector.memory.base import AddressSpace
from inspector.storage import contents_of

__all__ = ["Known", "Sources", "describe_kernel"]


@dataclass(frozen=True)
class Sources:
    """What the user gave: a layout profile, the kernel's files, or kvm-hv's debug file."""

    layout: Path | None = None
    kernel: Path | None = None
    modules: Path | None = None
    debug_file: Path | None = None


@dataclass(frozen=True)
class Known:
    """A profile, where it comes from, and the kernels that were met and are not the host's."""

    profile: Profile
    source: str
    rejected: tuple[str, ...] = ()


def describe_kernel(
    memory: AddressSpace, sources: Sources, vmcoreinfo: str = "", pause: Pause = nullcontext
) -> Known:
    """Return the profile of the kernel that runs in a physical memory.

    Args:
        memory: the target's physical memory.
        sources: what was given; it is used, and compared with the target.
        vmcoreinfo: the VMCOREINFO a dump carries, if it does.
        pause: gives a block in which reads cause no stops of their own.

    Raises:
        InspectorError: no description fits, or KVM cannot be inspected.
    """
    if sources.layout is not None:
        profile = confirmed(memory, _from_file(sources.layout), pause)
        return Known(profile, f"the layout {sources.layout}")

    @cache
    def searched() -> int:
        try:
            return find_kernel(memory, vmcoreinfo, pause).place
        except InspectorError:
            return 0

    if sources.kernel or sources.modules:
        return Known(_from_files(memory, sources, pause, searched), "files")
    cached = _from_cache(memory, sources.debug_file, pause)
    if cached is not None:
        return Known(cached, "the cache")
    found = find_kernel(memory, vmcoreinfo, pause, sources.debug_file)
    if found.profile is not None:
        keep(found.profile)
        file = f" and {found.debug_file}" if found.debug_file else ""
        return Known(found.profile, f"the target's memory{file}", found.rejected)
    try:
        known = _from_files(memory, sources, pause, lambda: found.place)
        return Known(known, "files", found.rejected)
    except TargetNotSupported as error:
        raise TargetNotSupported(_what_to_get(found), Step.TYPES) from error


def _from_file(path: Path) -> Profile:
    return Profile.from_json(contents_of(path, PROFILE_LIMIT))


def _from_files(
    memory: AddressSpace, sources: Sources, pause: Pause, elsewhere: Callable[[], int]
) -> Profile:
    profile = profile_from_files(
        memory, sources.kernel, sources.modules, sources.debug_file, elsewhere
    )
    profile = confirmed(memory, profile, pause)
    keep(profile)
    return profile


def _from_cache(memory: AddressSpace, debug_file: Path | None, pause: Pause) -> Profile | None:
    """Return the profile that fits, made from the debug file if one is given."""
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


def _what_to_get(found: Found) -> str:
    return (
        f"the host runs Linux {found.release}, and {found.missing}; give --debug-file with the "
        f"debug file of its module kvm-hv ({debug_package(found.release)}), or --layout with its "
        "layout profile, or --kernel and --modules with its own files where those have BTF"
    )
