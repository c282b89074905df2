"""Starting GDB, which takes a while: as soon as it is known that it will be needed."""

from __future__ import annotations

import contextlib
import shutil
import subprocess

from inspector.errors import Step, TargetNotSupported

__all__ = ["end_ahead", "start", "start_ahead"]


CANDIDATES = ("gdb-multiarch", "gdb")
ARGUMENTS = (
    *("--nx", "--quiet", "--interpreter=mi3", "-iex", "set auto-load off"),
    *("-iex", "set debuginfod enabled off"),
    # GDB 13 may abort when its target goes away; no core file is left in the user's directory
    *("-iex", "maintenance set internal-error corefile no"),
    *("-iex", "maintenance set internal-error quit yes"),
)
_ahead: list[subprocess.Popen[bytes]] = []


def start_ahead() -> None:
    """Start the GDB that ``start`` will give."""
    program = _program()
    if program is not None:
        # what is the matter is said where it is needed
        with contextlib.suppress(OSError):
            _ahead.append(_started(program))


def start() -> subprocess.Popen[bytes]:
    """Return a GDB, in a session of its own so that Ctrl-C does not reach it.

    Raises:
        TargetNotSupported: there is no GDB on this host.
    """
    if _ahead:
        return _ahead.pop()
    program = _program()
    if program is None:
        raise TargetNotSupported(
            "GDB is needed to attach and was not found; install it (Debian: gdb-multiarch)",
            Step.GDB,
        )
    return _started(program)


def end_ahead() -> None:
    """End a GDB that was started and is not needed."""
    while _ahead:
        with _ahead.pop() as process:
            process.kill()


def _program() -> str | None:
    return next(filter(None, map(shutil.which, CANDIDATES)), None)


def _started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [program, *ARGUMENTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
