"""What is shared by all that keeps files: writing them whole, and JSON that others wrote.

Files are written aside first and then renamed, so that nobody sees half of
one.
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
"""What taking a document apart raises that is JSON and not what was written here."""
STANDARD = "-"
"""The name of standard output."""
LINKS = 40
"""So many links are followed at most, as by Linux itself."""
ASIDE = ".inspector-"
"""What the name of a file begins with that is not whole yet."""


def write_aside(path: Path, data: bytes, *, clobber: bool = True) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Args:
        path: the file.
        data: what it holds.
        clobber: whether one that is there may be replaced.

    Raises:
        BadData: it cannot be written, or something else has its name.
    """
    try:
        if path.exists() and not path.is_file():
            # renaming would put a file in the place of a device, as /dev/null
            raise BadData(f"cannot write {path}: it is there and no file; give the name of a file")
        aside = path.with_name(f"{ASIDE}{secrets.token_hex(8)}")
        try:
            # named before it is there, so that a signal in between leaves nothing behind
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if clobber:
                os.replace(aside, path)
            else:
                os.link(aside, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(aside)
    except OSError as error:
        raise _not_written(path, error) from error


class Output:
    """Where ``-o`` has a command write: a file, standard output, or what else has that name.

    A regular file is replaced whole, and is private.  A link stays, and the
    file that it leads to is replaced.  Devices and pipes are written to.

    Args:
        name: the name of a file, ``-`` for standard output.
        clobber: whether a file that is there may be replaced.
    """

    def __init__(self, name: str | os.PathLike[str], *, clobber: bool = True) -> None:
        self.name = os.fspath(name)
        self._clobber = clobber

    def __str__(self) -> str:
        return "standard output" if self.name == STANDARD else self.name

    @property
    def is_standard(self) -> bool:
        """Whether it is standard output, by whatever name, so that nothing else belongs there."""
        return self.name == STANDARD or self._descriptor == 1

    def check(self) -> None:
        """See that it can be written, as far as that can be seen before there is anything to write.

        Raises:
            BadData: it cannot.
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
        """Write all there is.

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
        """Whether there is something that is neither a file nor a folder."""
        try:
            mode = os.stat(self.name).st_mode
        except FileNotFoundError:
            return False
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    @property
    def _descriptor(self) -> int | None:
        """The descriptor of this process that is meant, as by /dev/stdout, if one is."""
        try:
            there = os.stat(self.name)
            # a file that the shell has opened for standard output is not to be replaced
            if stat.S_ISREG(there.st_mode) and os.path.samestat(there, os.fstat(1)):
                return 1
            place = Path(os.path.abspath(self.name))
            for _ in range(LINKS):
                folder = os.path.realpath(place.parent)
                if folder == f"/proc/{os.getpid()}/fd" and place.name.isdecimal():
                    return int(place.name)
                place = Path(folder) / os.readlink(Path(folder) / place.name)
        except OSError:
            return None
        return None


def _end_of(path: Path) -> Path:
    """Return the file that a chain of links leads to; it need not be there."""
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
"""Bytes that are read at once of a file whose size may not be true."""


class Input:
    """A file that was opened to be read, which is a file indeed.

    Only files with bytes at positions are opened (and block devices, on which
    kernels leave dumps): a pipe would be waited for, and /dev/zero has no end.
    The descriptor is the caller's.

    Raises:
        OSError: it cannot be opened, or is something else.
    """

    def __init__(self, path: Path) -> None:
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
    """Return what is in a file that is read as a whole.

    Args:
        path: the file.
        limit: a file of more bytes is not read.

    Raises:
        BadData: it cannot be read, is no file, or larger.
    """
    try:
        found = Input(path)
        with os.fdopen(found.descriptor, "rb") as file:
            data = bytearray()
            # A file in /proc has no size, and others may grow.
            while found.size <= limit >= len(data) and (piece := file.read(PIECE)):
                data += piece
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}") from error
    if max(found.size, len(data)) > limit:
        raise BadData(
            f"{path} has {max(found.size, limit + 1)} bytes, and is read up to {limit}; "
            "give the file that is meant"
        )
    return bytes(data)


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
        ValueError: as of ``strict_json``, or it has text that cannot be
            printed (halves of surrogate pairs).
    """
    value = strict_json(text)
    json.dumps(value, ensure_ascii=False).encode()
    return value


def strict_json(text: bytes | str) -> Any:
    """Return what a JSON document says, in which every name means one thing.

    Raises:
        ValueError: it is none, is nested too deeply, gives a name twice in one
            object, or has numbers that JSON does not know, as NaN.
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
    raise ValueError(f"{text} is no number of JSON")
