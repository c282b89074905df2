"""What is shared by all that keeps files: writing them whole, and JSON that others wrote.

Files are written aside first and then renamed, so that nobody sees half of
one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from inspector.errors import BadData

__all__ = ["DAMAGE", "parsed_json", "private_folder", "write_aside"]

DAMAGE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""What taking a document apart raises that is JSON and not what was written here."""
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


def parsed_json(text: bytes | str) -> Any:
    """Return what a JSON document of any origin says.

    Raises:
        ValueError: it is none, is nested too deeply, or has text that cannot
            be printed (halves of surrogate pairs).
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value
