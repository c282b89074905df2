"""Files that are written aside first and then renamed, so that nobody sees half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from inspector.errors import BadData

__all__ = ["write_aside"]


def write_aside(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read.

    Raises:
        BadData: it cannot be written.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise BadData(
            f"cannot write {path}: {error.strerror}; give a file in a folder that may be written to"
        ) from error
