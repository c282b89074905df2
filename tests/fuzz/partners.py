"""The partners of the inspector: a lender of a machine, GDB, and QEMU's stub.

An input is everything that the other end says, whatever the questions are.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO

import numpy as np
import pytest

from inspector.live import mi, relay
from inspector.live import stub as conversation
from inspector.live.framing import encoded
from inspector.live.relay import GO
from inspector.live.served import open_served
from inspector.live.stub_memory import FEW
from inspector.live.terms import CHUNK
from inspector.memory.numbers import addresses
from tests.connection.test_mtree import MTREE
from tests.fuzz.mutate import text
from tests.fuzz.target import Target, asked

__all__ = ["PARTNERS"]

ROOM = 1 << 15
"""Number of bytes that fit into any socket or pipe."""


@contextlib.contextmanager
def _end_that_says(data: bytes) -> Iterator[socket.socket]:
    """Return our end of a connection whose other end has sent some data and then closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        theirs.send(data[:ROOM])
        theirs.shutdown(socket.SHUT_WR)
        yield ours


def _said_by_a_lender() -> tuple[bytes, ...]:
    answers = (MTREE.encode(), b"GDB", bytes(CHUNK), bytes(8 * FEW + 8))
    whole = b"".join(b"ok %d\n" % len(answer) + answer for answer in answers)
    return (whole, b"error 4\nlost")


def hear_lender(data: bytes) -> None:
    """Take an input as everything that a lender of a machine sends."""
    with _end_that_says(data) as ours:
        _, memory = open_served(f"served:{ours.fileno()}")
        memory.read_many(addresses([0, 8]), 4)
        memory.read_many(np.arange(1, 2 + FEW, dtype=np.uint64) * np.uint64(8), 8)


def _said_by_gdb() -> tuple[bytes, ...]:
    lines = (
        rb'=thread-group-added,id="i1"',
        rb'1^done,asm_insns=[{address="0x0",inst="nop",opcodes="60 00"}]',
        rb'*stopped,reason="signal-received",frame={addr="0x1",args=[]},thread-id="1"',
        rb'~"auto; currently \"powerpc:common64\"\n"',
        rb'2^error,msg="Cannot access memory at address 0xbad"',
        rb'*running,thread-id="all"',
        rb"3^running",
        rb"4^done",
        rb'=thread-group-exited,id="i1"',
    )
    return (b"\n".join(lines), b"\n".join(lines[:7]) + b"\n1^done\n" + lines[2])


class _Gdb:
    """A GDB process that has already written all its output."""

    def __init__(self, said: bytes) -> None:
        read, write = os.pipe()
        os.write(write, said[:ROOM])
        os.close(write)
        self.stdin, self.stdout = FileIO(os.devnull, "w"), FileIO(read)

    def kill(self) -> None:
        """Do nothing."""

    wait = kill


def hear_gdb(data: bytes) -> None:
    """Send commands, and take an input as everything that GDB answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda name: name)
        patch.setattr("subprocess.Popen", lambda *_, **__: _Gdb(data))
        gdb = mi.GdbProcess()
    try:
        for question in (gdb.command, gdb.console):
            asked(question, "x")
        asked(gdb.resume)
        gdb.wait_stopped()
    finally:
        gdb.close()


def _said_by_a_stub() -> tuple[bytes, ...]:
    status = b"O" + b"VM status: paused".hex().encode()
    served = b"00" * 16, b"ab" * CHUNK, b"cd" * 8
    begun = (status, b"OK", b"OK", b"0", b"OK", *served, b"OK")
    whole = (*begun, b"T02thread:01;", b"OK", b"OK")
    return tuple(b"".join(map(encoded, packets)) for packets in (whole, (*begun, b"E14", b"W00")))


def hear_stub(data: bytes) -> None:
    """Do everything that a relay does with a stub; an input is what the stub sends."""
    with _end_that_says(data) as ours:
        guard = conversation.Guard(-1)
        stub = conversation.Stub(ours, guard, conversation.Log())
        with suppress(conversation.StubRefused):
            relay.Relay(stub, None, ours, guard).begin("")
        with suppress(conversation.StubRefused):
            stub.read([(0, 16), (1 << 12, CHUNK + 8)])
        with suppress(conversation.StubRefused):
            stub.described()
        stub.send(GO)
        stub.hold()
        stub.leave(keep_stopped=False)


PARTNERS = {
    "a machine that is lent": Target(_said_by_a_lender, hear_lender, text),
    "GDB": Target(_said_by_gdb, hear_gdb, text),
    "QEMU's stub": Target(_said_by_a_stub, hear_stub, text, (conversation.StubLost,)),
}
