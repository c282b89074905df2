"""Helpers for files: writing them whole, reading them, and parsing JSON of any origin.

A file is written under another name first and then renamed, so that no reader
sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from inspector.errors import BadData

__all__ = [
    "DAMAGE",
    "Input",
    "Output",
    "contents_of",
    "parsed_json",
    "private_folder",
    "strict_json",
    "write_aside",
]

DAMAGE = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
"""The errors of decoding a document that this tool did not write."""
STANDARD = "-"
"""The name of standard output."""
LINKS = 40
"""How many symbolic links are followed at most; Linux has the same limit."""
ASIDE = ".inspector-"
"""Prefix of the name of a file that is not complete yet."""


def write_aside(path: Path, data: bytes, *, clobber: bool = True) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Args:
        path: the file.
        data: its content.
        clobber: whether an existing file may be replaced.

    Raises:
        BadData: the file cannot be written, or its name belongs to a device or the like.
    """
    try:
        if path.exists() and not path.is_file():
            # Renaming would replace a device such as /dev/null by a file.
            raise BadData(
                f"cannot write {path}: it exists and is not a file; give the name of a file"
            )
        aside = path.with_name(f"{ASIDE}{secrets.token_hex(8)}")
        try:
            # The name is known before the file exists, so an interrupt leaves no file that
            # "finally" cannot remove.
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                # The bytes must be on disk first: a crash must not leave an empty file.
                os.fsync(file.fileno())
            if clobber:
                os.replace(aside, path)
            else:
                # Unlike a rename, a link fails if the name exists.
                os.link(aside, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)
    except OSError as error:
        raise _not_written(path, error) from error


class Output:
    """Where ``-o`` makes a command write: a file, standard output, a device or a pipe.

    A regular file is replaced whole, and only its owner can read it.  A symbolic
    link stays, and the file that it leads to is replaced.  Devices and pipes are
    written to.

    Args:
        name: the name of a file, ``-`` for standard output.
        clobber: whether an existing file may be replaced.
    """

    def __init__(self, name: str | os.PathLike[str], *, clobber: bool = True) -> None:
        self.name = os.fspath(name)
        self._clobber = clobber

    def __str__(self) -> str:
        return "standard output" if self.name == STANDARD else self.name

    @property
    def is_standard(self) -> bool:
        """Whether it is standard output under any name, so that nothing else may be printed."""
        return self.name == STANDARD or self._descriptor == 1

    def check(self) -> None:
        """Check that it can be written, as far as that is possible before there is any data.

        Raises:
            BadData: it cannot be written.
        """
        if self.name == STANDARD or self._descriptor is not None:
            return
        path = Path(self.name)
        try:
            if self._is_special:
                return
            if not self._clobber and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            folder = _end_of(path).parent
            os.stat(folder / ".")
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise _not_written(self, error) from error

    def write(self, data: bytes) -> None:
        """Write all of the data.

        Raises:
            BadData: it cannot be written.
        """
        path = Path(self.name)
        try:
            if self.name == STANDARD:
                _write_through(1, data)
            elif self._descriptor is not None:
                _write_through(self._descriptor, data)
            elif self._is_special:
                descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY)
                try:
                    _write_through(descriptor, data)
                finally:
                    os.close(descriptor)
            else:
                write_aside(_end_of(path) if self._clobber else path, data, clobber=self._clobber)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _not_written(self, error) from error

    @property
    def _is_special(self) -> bool:
        """Whether the name belongs to something that is neither a file nor a folder."""
        try:
            mode = os.stat(self.name).st_mode
        except FileNotFoundError:
            return False
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    @property
    def _descriptor(self) -> int | None:
        """The descriptor of this process that the name means, as /dev/stdout does; or None."""
        try:
            there = os.stat(self.name)
            # A file that the shell has opened for standard output must not be replaced.
            if stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(1)):
                return 1
            place = Path(os.path.abspath(self.name))
            # Follow one link at a time: resolving the whole name would go past /proc/PID/fd/N.
            for _ in range(LINKS):
                folder = os.path.realpath(place.parent)
                if folder == f"/proc/{os.getpid()}/fd" and place.name.isdecimal():
                    return int(place.name)
                place = Path(folder) / os.readlink(Path(folder) / place.name)
        except OSError:
            return None
        return None


def _end_of(path: Path) -> Path:
    """Return the file that a chain of symbolic links leads to; it need not exist."""
    if path.is_symlink():
        return Path(os.path.realpath(path))
    return path


def _write_through(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _not_written(what: Path | Output, error: OSError) -> BadData:
    remedy = "give a file in a folder that may be written to"
    if isinstance(error, FileExistsError):
        remedy = "leave out --no-clobber, or give another name"
    return BadData(f"cannot write {what}: {error.strerror}; {remedy}")


PIECE = 1 << 20
"""Bytes that are read at once from a file whose reported size may be wrong."""


class Input:
    """A file that is open for reading, and its size.

    Only regular files are accepted, and block devices, on which kernels leave
    dumps: reading a pipe would wait for its writer, and /dev/zero has no end.
    The caller has to close the descriptor.

    Raises:
        OSError: it cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
        # Without O_NONBLOCK, opening a pipe would wait before it can be refused.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            status = os.fstat(self.descriptor)
            mode = status.st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise OSError(errno.ESPIPE, f"it is {_kind(mode)}, not a file")
            self.size = status.st_size
            if stat.S_ISBLK(mode):
                self.size = os.lseek(self.descriptor, 0, os.SEEK_END)
        except BaseException:
            os.close(self.descriptor)
            raise


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def contents_of(path: Path, limit: int) -> bytes:
    """Return the whole content of a file.

    Args:
        path: the file.
        limit: the most bytes that the file may have.

    Raises:
        BadData: the file cannot be read, is not a regular file, or is larger.
    """
    try:
        found = Input(path)
        with os.fdopen(found.descriptor, "rb") as file:
            data = bytearray()
            # A file in /proc reports no size, and other files may grow.
            while found.size <= limit >= len(data) and (piece := file.read(PIECE)):
                data += piece
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}") from error
    if max(found.size, len(data)) > limit:
        size = found.size if found.size > limit else f"more than {limit}"
        raise BadData(
            f"{path} has {size} bytes, and at most {limit} can be read; "
            "check that it is the right file"
        )
    return bytes(data)


def private_folder(path: Path) -> None:
    """Make a folder and its missing parents, all of them accessible to their owner only.

    Raises:
        OSError: the folder cannot be made.
    """
    if not path.is_dir():
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def parsed_json(text: bytes | str) -> Any:
    """Return the value of a JSON document of any origin.

    Raises:
        ValueError: as for ``strict_json``, or the document has text that cannot
            be printed (halves of surrogate pairs).
    """
    value = strict_json(text)
    # Halves of surrogate pairs fail here, and not when a report prints them.
    json.dumps(value, ensure_ascii=False).encode()
    return value


def strict_json(text: bytes | str) -> Any:
    """Return the value of a JSON document, in which no object has a name twice.

    Raises:
        ValueError: it is not JSON, is nested too deeply, has a name twice in one
            object, or has numbers that JSON does not have, such as NaN.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")
