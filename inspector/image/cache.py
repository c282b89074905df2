"""Profiles of kernels that were seen before, one file per build ID.

They lie in ``$XDG_CACHE_HOME/inspector/layouts`` (``~/.cache`` where that is
not set).  The cache is a convenience: what cannot be read is not there, and
what cannot be written is not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from inspector.errors import InspectorError
from inspector.image.profile import Profile
from inspector.storage import private_folder, write_aside

__all__ = ["cached_profiles", "directory", "encoded", "keep"]

SIZE_LIMIT = 1 << 20
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")


def directory() -> Path:
    """Return the folder the profiles lie in; it may not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inspector" / "layouts"


def cached_profiles() -> Iterator[Profile]:
    """Yield the profiles that are kept, the latest first; damaged ones are passed over."""
    files: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError, RuntimeError):
        for path in directory().glob("*.json"):
            status = path.stat()
            if status.st_size <= SIZE_LIMIT:
                files.append((status.st_mtime, path))
    for _, path in sorted(files, reverse=True):
        with contextlib.suppress(OSError, InspectorError):
            profile = Profile.from_json(path.read_bytes())
            if profile.build_id == path.stem and _is_whole(profile):
                yield profile


def _is_whole(profile: Profile) -> bool:
    """Say whether a profile can be known again, and has what this version looks for.

    Where data symbols are named at all, ``partition_tb`` is; earlier versions
    did not look for it, nor for the words that confirm others, of which
    every kernel has ``list_head.prev``.
    """
    symbols = profile.symbols
    return (
        "__start_notes" in symbols
        and ("partition_tb" in symbols or "cur_cpu_spec" not in symbols)
        and "prev" in profile.structs["list_head"]
    )


def keep(profile: Profile) -> None:
    """Keep a profile, if its kernel has a build ID to know it by, and says where it is."""
    if not _BUILD_ID.fullmatch(profile.build_id) or not _is_whole(profile):
        return
    with contextlib.suppress(OSError, RuntimeError, InspectorError):
        folder = directory()
        private_folder(folder)
        write_aside(folder / f"{profile.build_id}.json", encoded(profile))


def encoded(profile: Profile) -> bytes:
    """Return the JSON form of a profile as a file holds it."""
    return (json.dumps(profile.to_json(), indent=1) + "\n").encode()
