"""Confines a process: it cannot write to files or use the network, and its memory is limited.

GDB and the relay read the packets of a stub, which may be hostile.  If one of
them is misled all the same, it has no means to do harm: it can write to no
file, make no connection, and use only a limited amount of memory.

``launcher`` returns the command that starts a confined program: a Python
process that confines itself and then becomes the program.  A protection that
this kernel does not have is left out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ctypes

__all__ = ["Limits", "confine", "landlock_version", "launcher", "program"]

MIB = 1 << 20

CLONE_NEWUSER, CLONE_NEWNET = 1 << 28, 1 << 30
PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, of these numbers on every architecture (linux/landlock.h)."""
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = (1 << bit for bit in range(4))
OF_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files each version of Landlock knows; later versions know as many as the
last one here."""
NETWORK_SINCE, SCOPES_SINCE = 4, 6
TCP = 0b11
"""The rights to bind a TCP port and to connect to one; no rule grants either."""
SCOPES = 0b11
"""The restriction of sockets in the abstract name space, and of signals to other processes."""

RULESET = struct.Struct("=QQQ")
"""The rights over files, the rights over the network, and the scopes that a rule set handles."""
BENEATH = struct.Struct("=Qi")
"""The rights that a rule grants, and the descriptor of the folder or file where it grants them."""


class Limits(NamedTuple):
    """What a process may use.

    Args:
        memory: MiB of address space.
        processor: seconds of processor time, None for no limit.
        writes: whether it may write to the files that it has open.
        dies: whether it ends when the thread that started it ends.
        landlock: whether Landlock is used, if the kernel has it.
    """

    memory: int
    processor: int | None = None
    writes: bool = False
    dies: bool = False
    landlock: bool = True


FILES = 128
"""Descriptors that may be open."""


def confine(limits: Limits) -> None:
    """Confine this process, and every process that it starts; this cannot be undone.

    Raises:
        OSError: a limit could not be set.
    """
    libc = _libc()
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _no_network(libc)
    if limits.dies:
        parent = os.getppid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # the parent may have ended before the kernel was told to kill this process with it
        if os.getppid() != parent:
            raise OSError("the process that started this one has ended")
    _limit(resource.RLIMIT_AS, limits.memory * MIB)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, FILES)
    if not limits.writes:
        _limit(resource.RLIMIT_FSIZE, 0)
    if limits.processor is not None:
        # the soft limit only, because the process that started this one may raise it again
        _limit(resource.RLIMIT_CPU, limits.processor, hard=False)
    if limits.landlock:
        _landlock(libc)


def _no_network(libc: ctypes.CDLL) -> None:
    """Take the network from this process, if the kernel permits it; open sockets stay usable."""
    # without privileges, a network namespace needs a user namespace of its own
    if libc.unshare(CLONE_NEWNET):
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _libc() -> ctypes.CDLL:
    # a caller that only needs the command of the launcher does not wait for this import
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _limit(kind: int, value: int, hard: bool = True) -> None:
    """Lower a limit; a limit that is lower already stays."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    resource.setrlimit(kind, (value, value if hard else most))


def landlock_version() -> int:
    """Return the version of Landlock that this kernel has, 0 for none."""
    libc = _libc()
    version = libc.syscall(CREATE_RULESET, None, 0, CREATE_RULESET_VERSION)
    return max(0, int(version))


def _landlock(libc: ctypes.CDLL) -> None:
    """Permit only reading and executing of files, and no TCP, as far as the kernel can enforce it.

    Writing to /dev/null stays permitted.
    """
    version = landlock_version()
    if not version:
        return
    files = (1 << OF_FILES.get(version, OF_FILES[max(OF_FILES)])) - 1
    network = TCP if version >= NETWORK_SINCE else 0
    scopes = SCOPES if version >= SCOPES_SINCE else 0
    fields = RULESET.pack(files, network, scopes)
    # an older version knows only the first field, or the first two, and is given only those
    known = 8 if version < NETWORK_SINCE else 16 if version < SCOPES_SINCE else RULESET.size
    rules = libc.syscall(CREATE_RULESET, fields, known, 0)
    if rules < 0:
        return
    try:
        for path, granted in (("/", EXECUTE | READ_FILE | READ_DIR), (os.devnull, WRITE_FILE)):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = BENEATH.pack(granted, place)
                if libc.syscall(ADD_RULE, rules, RULE_PATH_BENEATH, rule, 0) < 0:
                    # restricted without this rule, the process could not even start its program
                    return
            finally:
                os.close(place)
        libc.syscall(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def program(module: str) -> list[str]:
    """Return the command that runs ``main`` of a module of this package in a bare Python.

    The package's folder comes last on the path, so that no file beside the
    package is taken for a module of Python's own.
    """
    folder = os.path.abspath(__file__)
    for _ in __name__.split("."):
        folder = os.path.dirname(folder)
    code = f"import sys; sys.path.append({folder!r}); from {module} import main; main()"
    return [sys.executable, "-I", "-S", "-c", code]


def launcher(limits: Limits, command: Sequence[str]) -> list[str]:
    """Return the command that starts a program in a confined process."""
    given = ",".join("" if value is None else str(int(value)) for value in limits)
    return [*program(__name__), given, *command]


def main() -> None:
    """Confine this process and become the program; the arguments are the limits and the command."""
    given, *command = sys.argv[1:]
    memory, processor, *flags = given.split(",")
    limits = Limits(int(memory), int(processor) if processor else None, *(f == "1" for f in flags))
    with contextlib.suppress(OSError):
        confine(limits)
        os.execv(command[0], command)
    # nobody reads a message from here; the process that waits for the program sees that it ended
    os._exit(127)
