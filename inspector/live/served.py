"""The physical memory of a machine that a GDB holds, lent to this process by a script inside it.

GDB's Python has none of the packages that decoding needs, and QEMU's stub
takes one client.  So the script starts this tool with one end of a socket,
as the target ``served:DESCRIPTOR``, and answers requests over it while the
machine is stopped.  The only requests are for reading.

A request is ``about``, ``map`` or ``read``, the last one followed by an
address and a length for each range, in hexadecimal.  The answer is the name of
the lender, QEMU's ``info mtree -f``, or the bytes of all ranges one after the
other.
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
"""Ranges in one request: between two requests GDB can see that the user wants it back."""


def open_served(target: str) -> tuple[str, StubMemory]:
    """Return the name of the lender of the machine, and the machine's memory.

    Raises:
        TargetNotSupported: the target does not name a socket, or the lender does not answer.
    """
    try:
        descriptor = os.dup(int(target.removeprefix(SERVED_PREFIX)))
        lender = Lender(socket.socket(fileno=descriptor), BATCH)
    except (OSError, ValueError) as error:
        raise TargetNotSupported(
            f"'{target}' is not a socket; only gdb_scripts/kvmhv.py gives such a target"
        ) from error
    ram = parse_mtree(lender.ask("map").decode("ascii", "replace")).ram
    who = shown(lender.ask("about").decode("utf-8", "replace"))
    return who, StubMemory(lender.read_ranges, ram)
