"""Files that are written aside first and then renamed, so that nobody sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from inspector.errors import BadData

__all__ = ["private_folder", "write_aside"]

ASIDE = ".inspector-"
"""What the name of a file begins with that is not whole yet."""


def write_aside(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read.

    Raises:
        BadData: it cannot be written, or something else has its name.
    """
    if path.exists() and not path.is_file():
        # renaming would put a file in the place of a device, as /dev/null
        raise BadData(f"cannot write {path}: it is there and no file; give the name of a file")
    try:
        descriptor, name = tempfile.mkstemp(prefix=ASIDE, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise BadData(
            f"cannot write {path}: {error.strerror}; give a file in a folder that may be written to"
        ) from error


def private_folder(path: Path) -> None:
    """Make a folder, and those above it that are not there, for their owner only.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
