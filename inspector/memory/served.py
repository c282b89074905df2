"""The physical memory of a machine that a GDB holds, lent to this process by a script inside it.

GDB's Python has none of the packages that decoding needs, and QEMU's stub
takes one client.  So the script starts this tool with one end of a socket,
as the target ``served:DESCRIPTOR``, and answers what is asked over it while
the machine stands still.  Nothing but reading can be asked for.

A request is a line of ASCII: ``about``, ``map`` or ``read``, the last one
followed by an address and a length for each range, in hexadecimal.  The
answer is the line ``ok LENGTH`` or ``error LENGTH`` and so many bytes: who
lends the machine, QEMU's ``info mtree -f``, the bytes of all ranges one
after the other, or what went wrong.
"""

from __future__ import annotations

import os
import socket

from inspector.errors import TargetNotSupported
from inspector.memory.ram import parse_mtree
from inspector.memory.stub import StubMemory

__all__ = ["SERVED_PREFIX", "open_served"]

SERVED_PREFIX = "served:"
ANSWER_LIMIT = 1 << 26
"""Bytes; what is read at once is less."""
BATCH = 64
"""Ranges in one request: between two of them GDB can see that the user wants it back."""


def open_served(target: str) -> tuple[str, StubMemory]:
    """Return who lends the machine, and its memory.

    Raises:
        TargetNotSupported: the target names no socket, or nobody answers.
    """
    try:
        lender = _Lender(int(target.removeprefix(SERVED_PREFIX)))
    except (OSError, ValueError) as error:
        raise TargetNotSupported(
            f"'{target}' is no socket; such a target is given by gdb_scripts/kvmhv.py only"
        ) from error
    ram = parse_mtree(lender.ask("map").decode("ascii", "replace"))
    return lender.ask("about").decode("utf-8", "replace"), StubMemory(lender.read_ranges, ram)


class _Lender:
    """The script at the other end of the socket."""

    def __init__(self, descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as end:
            self._stream = end.makefile("rwb")

    def ask(self, request: str) -> bytes:
        """Return the answer to a request.

        Raises:
            TargetNotSupported: GDB could not do it, or is gone.
        """
        try:
            self._stream.write(request.encode() + b"\n")
            self._stream.flush()
            kind, _, length = self._stream.readline().partition(b" ")
            if length and not 0 <= int(length) <= ANSWER_LIMIT:
                raise ValueError(f"it announces {int(length)} bytes")
            answer = self._stream.read(int(length)) if length else b""
        except (OSError, ValueError) as error:
            raise TargetNotSupported(f"GDB was asked to {request[:40]}: {error}") from error
        if kind == b"error":
            text = answer.decode("utf-8", "replace")
            raise TargetNotSupported(f"GDB could not {request[:40]}: {text}")
        if kind != b"ok" or len(answer) != int(length):
            raise TargetNotSupported("the GDB that lent the machine took it back")
        return answer

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges of RAM."""
        pieces = []
        for first in range(0, len(ranges), BATCH):
            batch = ranges[first : first + BATCH]
            numbers = " ".join(f"{address:x} {length:x}" for address, length in batch)
            answer = self.ask(f"read {numbers}")
            if len(answer) != sum(length for _, length in batch):
                raise TargetNotSupported("the GDB that lent the machine gave less than was asked")
            begin = 0
            for _, length in batch:
                pieces.append(answer[begin : begin + length])
                begin += length
        return pieces
