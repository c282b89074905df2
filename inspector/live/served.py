"""The physical memory of a machine that a GDB holds, lent to this process by a script inside it.

GDB's Python has none of the packages that decoding needs, and QEMU's stub
takes one client.  So the script starts this tool with one end of a socket,
as the target ``served:DESCRIPTOR``, and answers what is asked over it while
the machine stands still.  Nothing but reading can be asked for.

A request is ``about``, ``map`` or ``read``, the last one followed by an
address and a length for each range, in hexadecimal.  The answer is who lends
the machine, QEMU's ``info mtree -f``, or the bytes of all ranges one after
the other.
"""

from __future__ import annotations

import os
import socket

from inspector.errors import TargetNotSupported, shown
from inspector.live.lender import Lender
from inspector.live.mtree import parse_mtree
from inspector.live.stub_memory import StubMemory

__all__ = ["SERVED_PREFIX", "open_served"]

SERVED_PREFIX = "served:"
BATCH = 64
"""Ranges in one request: between two of them GDB can see that the user wants it back."""


def open_served(target: str) -> tuple[str, StubMemory]:
    """Return who lends the machine, and its memory.

    Raises:
        TargetNotSupported: the target names no socket, or nobody answers.
    """
    try:
        descriptor = os.dup(int(target.removeprefix(SERVED_PREFIX)))
        lender = Lender(socket.socket(fileno=descriptor), BATCH)
    except (OSError, ValueError) as error:
        raise TargetNotSupported(
            f"'{target}' is no socket; such a target is given by gdb_scripts/kvmhv.py only"
        ) from error
    ram = parse_mtree(lender.ask("map").decode("ascii", "replace"))
    who = shown(lender.ask("about").decode("utf-8", "replace"))
    return who, StubMemory(lender.read_ranges, ram)
