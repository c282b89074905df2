"""Profiles of kernels that were seen before, one file per build ID.

They lie in ``$XDG_CACHE_HOME/inspector/layouts`` (``~/.cache`` where that is
not set).  The cache is a convenience: what cannot be read is not there, and
what cannot be written is not kept.

A profile decides what every word in a target means, so one that somebody else
has put there could decide the verdict.  Folder and files are used only where
they are the user's own, private, and files or folders indeed; each file has
the digest of what was kept, and a target is compared with a profile as with
one that the user gives (``kernel.host.confirmed``).  Somebody who can write
the user's private files can replace this tool as well.
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
"""So many profiles are kept; the one that was not used for the longest time goes first."""
LOOKED_AT = 1024
"""So many files of the folder are looked at."""
ABANDONED = 3600.0
"""Seconds after which a file that was not written to its end is removed."""
DIGEST = "kept"
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")


def directory() -> Path:
    """Return the folder the profiles lie in; it may not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "inspector" / "layouts"


def cached_profiles() -> Iterator[Profile]:
    """Yield the profiles that are kept, the latest used first; damaged ones are passed over."""
    with contextlib.suppress(OSError, RuntimeError), _opened() as folder:
        if folder is None:
            return
        for _, name in sorted(_files(folder), reverse=True):
            profile = _read(folder, name)
            if profile is not None:
                yield profile


@contextlib.contextmanager
def _opened() -> Iterator[int | None]:
    """Open the folder for a block, if it may be used.

    Raises:
        OSError: there is none.
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
    """Return when the files of profiles were used last, and their names."""
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
            f"in the cache of kernel layouts {directory()}, what is no private file of yours is "
            f"not used ({strange}); remove it"
        )
    return found


def _read(folder: int, name: str) -> Profile | None:
    """Return the profile in a file, None where it is not what was kept."""
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
    """Say whether a profile can be known again, and has what this version looks for.

    Where data symbols are named at all, ``partition_tb`` is; earlier versions
    did not look for it, nor for the words that confirm others, of which
    every kernel has ``list_head.prev``.  One that does not say which modules'
    types it was made from could not be compared with those that are loaded.
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
    """Keep a profile, if its kernel has a build ID to know it by, and says where it is."""
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
    """Note that a profile was of use, so that it is kept longer than others."""
    with contextlib.suppress(OSError, RuntimeError), _opened() as folder:
        if folder is not None:
            os.utime(f"{profile.build_id}.json", dir_fd=folder, follow_symlinks=False)


def _tidy(folder: int) -> None:
    """Remove the profiles there are too many of, and files that were not written to their end."""
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
    """Return the JSON form of a profile as a file holds it."""
    return (json.dumps(profile.to_json(), indent=1) + "\n").encode()
