"""Starts GDB, which takes a while, as soon as it is known that it will be needed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import threading
from pathlib import Path

from inspector.errors import Stage, TargetNotSupported
from inspector.live import confine
from inspector.live.confine import Limits

__all__ = ["RENEWED_AFTER", "end_ahead", "protections", "renew", "start", "start_ahead"]


CANDIDATES = (
    "gdb-multiarch",
    "powerpc64le-linux-gnu-gdb",
    "powerpc64-linux-gnu-gdb",
    "gdb",
)
"""Programs that may know POWER, those that do first."""
ARGUMENTS = (
    *("--nx", "--quiet", "--interpreter=mi3", "-iex", "set auto-load off"),
    *("-iex", "set debuginfod enabled off"),
    # GDB looks for no file that a stub could name
    *("-iex", "set auto-solib-add off", "-iex", "set sysroot /dev/null"),
    # GDB 13 may abort when its target goes away; no core file is left in the user's directory
    *("-iex", "maintenance set internal-error corefile no"),
    *("-iex", "maintenance set internal-error quit yes"),
)
MEMORY = 2048
"""MiB that GDB may use."""
PROCESSOR = 120
"""Seconds of processor time from one renewal to the next; a command takes less than one."""
RENEWED_AFTER = 30.0
"""Seconds from one renewal to the next, at least."""
LIMITS = Limits(MEMORY, PROCESSOR)
NETWORK = "/proc/self/ns/net"
WITHHELD = ("DEBUGINFOD_URLS",)
"""Environment variables that would make GDB ask servers for files."""
_ahead: list[subprocess.Popen[bytes]] = []


def start_ahead() -> None:
    """Start the GDB that ``start`` will return."""
    program = _program()
    if program is not None:
        # ``start`` reports the error, where GDB is needed
        with contextlib.suppress(OSError):
            _ahead.append(_started(program))


def start() -> subprocess.Popen[bytes]:
    """Return a GDB in a session of its own, so that Ctrl-C does not reach it.

    Raises:
        TargetNotSupported: there is no GDB on this host.
    """
    if _ahead:
        return _ahead.pop()
    program = _program()
    if program is None:
        raise TargetNotSupported(
            "GDB is needed to attach and was not found; install it (Debian: gdb-multiarch)",
            Stage.GDB,
        )
    return _started(program)


def protections() -> str:
    """Say in a few words which protections are in force for GDB and the relay on this host."""
    network = os.readlink(NETWORK)
    done = subprocess.run(
        confine.launcher(LIMITS, [shutil.which("readlink") or "readlink", NETWORK]),
        capture_output=True,
        text=True,
        check=False,
    )
    version = confine.landlock_version()
    apart = done.returncode == 0 and done.stdout.strip() != network
    words = (
        "limits of memory and file size",
        f"no file is written or made (Landlock {version})"
        if version
        else "an empty file can be made, because this kernel has no Landlock (Linux 5.13 or later)",
        "no network"
        if apart
        else "no TCP (Landlock)"
        if version >= confine.NETWORK_SINCE
        else "the network can be used, because this kernel gives no namespace to this user",
    )
    return "; ".join(words)


def renew(process: subprocess.Popen[bytes]) -> None:
    """Extend the processor time of a GDB that answers, because a session may last for hours."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()
        # utime and stime in clock ticks; the fields begin after the name of the process
        used = sum(map(int, fields[11:13])) // os.sysconf("SC_CLK_TCK")
        _, most = resource.prlimit(process.pid, resource.RLIMIT_CPU)
        soft = used + PROCESSOR if most == resource.RLIM_INFINITY else min(used + PROCESSOR, most)
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (soft, most))


def end_ahead() -> None:
    """End a GDB that was started and is not needed."""
    while _ahead:
        with _ahead.pop() as process:
            process.kill()


def _program() -> str | None:
    return next(filter(None, map(shutil.which, CANDIDATES)), None)


def _started(program: str) -> subprocess.Popen[bytes]:
    # ``dies`` ends GDB with the thread that started it, and only the main thread lasts as long as
    # the process
    dies = threading.current_thread() is threading.main_thread()
    kept = {name: value for name, value in os.environ.items() if name not in WITHHELD}
    return subprocess.Popen(
        confine.launcher(LIMITS._replace(dies=dies), [program, *ARGUMENTS]),
        env=kept,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
