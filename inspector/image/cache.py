"""Profiles of kernels that were seen before, one file per build ID.

They lie in ``$XDG_CACHE_HOME/inspector/layouts`` (``~/.cache`` where that is
not set).  The cache is a convenience: a profile that cannot be read counts as
absent, and a profile that cannot be written is not kept.

A profile decides what every word in a target means, so a profile that another
user has put there could decide the verdict.  The folder and the files are
used only if they belong to the user, are private, and are a real folder and
regular files.  Each file contains the digest of its profile, and a target is
compared with a cached profile as with one that the user gives
(``kernel.host.confirmed``).  Anyone who can write the user's private files
can replace this tool as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inspector.errors import Hint, InspectorError
from inspector.image.profile import PROFILE_LIMIT, Profile
from inspector.storage import ASIDE, DAMAGE, parsed_json, private_folder, write_aside

__all__ = ["cached_profiles", "directory", "encoded", "keep", "used"]

KEPT = 64
"""Number of profiles that are kept; the least recently used one is removed first."""
LOOKED_AT = 1024
"""Number of files of the folder that are looked at."""
ABANDONED = 3600.0
"""Age in seconds after which an unfinished file is removed."""
DIGEST = "kept"
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")


def directory() -> Path:
    """Return the folder of the profiles; it need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inspector" / "layouts"


def cached_profiles() -> Iterator[Profile]:
    """Yield the cached profiles, the most recently used first; damaged ones are skipped."""
    with contextlib.suppress(OSError, RuntimeError), _opened() as folder:
        if folder is None:
            return
        for _, name in sorted(_files(folder), reverse=True):
            profile = _read(folder, name)
            if profile is not None:
                yield profile


@contextlib.contextmanager
def _opened() -> Iterator[int | None]:
    """Open the folder for a block; yield None if it is not private.

    Raises:
        OSError: the folder does not exist or cannot be opened.
    """
    place = directory()
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        why = _not_private(os.fstat(folder))
        if why:
            _hint(
                f"the cache of kernel layouts {place} is not used: {why}; make it private "
                "(chmod 700), or set XDG_CACHE_HOME to a folder of your own"
            )
        yield None if why else folder
    finally:
        os.close(folder)


def _not_private(status: os.stat_result) -> str:
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    return "others may read or write it" if stat.S_IMODE(status.st_mode) & 0o077 else ""


def _hint(text: str) -> None:
    warnings.warn(text, Hint, stacklevel=2)


def _files(folder: int) -> list[tuple[float, str]]:
    """Return the time of the last use and the name of every profile's file."""
    found = []
    strange = 0
    with os.scandir(folder) as entries:
        for entry in itertools.islice(entries, LOOKED_AT):
            build_id, suffix = os.path.splitext(entry.name)
            if suffix != ".json" or not _BUILD_ID.fullmatch(build_id):
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and not _not_private(status):
                found.append((status.st_mtime, entry.name))
            else:
                strange += 1
    if strange:
        _hint(
            f"entries of the cache of kernel layouts {directory()} are not used, because they are "
            f"not private files of yours ({strange}); remove them"
        )
    return found


def _read(folder: int, name: str) -> Profile | None:
    """Return the profile in a file, None if the file is not as ``keep`` wrote it."""
    with contextlib.suppress(OSError, InspectorError, *DAMAGE):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or _not_private(status):
                return None
            text = file.read(PROFILE_LIMIT + 1)
            if len(text) > PROFILE_LIMIT:
                return None
            document = parsed_json(text)
            if document.pop(DIGEST) != _digest(document):
                return None
            profile = Profile.from_json(json.dumps(document))
            if f"{profile.build_id}.json" == name and _is_whole(profile):
                return profile
    return None


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _is_whole(profile: Profile) -> bool:
    """Say whether a profile can be matched with a target, and has all that this version reads.

    A kernel that names its data symbols names ``partition_tb``, and every
    kernel has ``list_head.prev``; a profile without them comes from an
    earlier version, which looked for neither.  A profile that does not record
    which modules its types come from cannot be compared with the loaded ones.
    """
    symbols = profile.symbols
    named = bool(profile.module_btf or profile.module_build_ids)
    return (
        "__start_notes" in symbols
        and named
        and ("partition_tb" in symbols or "cur_cpu_spec" not in symbols)
        and "prev" in profile.structs["list_head"]
    )


def keep(profile: Profile) -> None:
    """Keep a profile, if it has its kernel's build ID and the address of that in memory."""
    if not _BUILD_ID.fullmatch(profile.build_id) or not _is_whole(profile):
        return
    with contextlib.suppress(OSError, RuntimeError, InspectorError):
        place = directory()
        private_folder(place)
        with _opened() as folder:
            if folder is None:
                return
            document = profile.to_json()
            text = json.dumps(document | {DIGEST: _digest(document)}, indent=1)
            write_aside(place / f"{profile.build_id}.json", text.encode())
            _tidy(folder)


def used(profile: Profile) -> None:
    """Mark a profile as used now, so that it is kept longer than others."""
    with contextlib.suppress(OSError, RuntimeError), _opened() as folder:
        if folder is not None:
            os.utime(f"{profile.build_id}.json", dir_fd=folder, follow_symlinks=False)


def _tidy(folder: int) -> None:
    """Remove the least recently used profiles beyond ``KEPT``, and old unfinished files."""
    for _, name in sorted(_files(folder), reverse=True)[KEPT:]:
        os.unlink(name, dir_fd=folder)
    with os.scandir(folder) as entries:
        abandoned = [
            entry.name
            for entry in itertools.islice(entries, LOOKED_AT)
            if entry.name.startswith(ASIDE)
            and time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED
        ]
    for name in abandoned:
        os.unlink(name, dir_fd=folder)


def encoded(profile: Profile) -> bytes:
    """Return the JSON form of a profile, as the contents of a file."""
    return (json.dumps(profile.to_json(), indent=1) + "\n").encode()
