"""Memory that is lent over a socket; in these tests the lender is a thread."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

import numpy as np
import pytest

from inspector.errors import InspectorError, MemoryNotReadable, TargetLost, TargetNotSupported
from inspector.live.served import BATCH
from inspector.memory.numbers import addresses
from inspector.session import dump_of

MAP = """FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000003ffff (prio 0, ram): ram
"""
CONTENTS = np.random.default_rng(1).bytes(1 << 18)

Answer = Callable[[str], bytes]
ANSWERS: dict[str, Answer] = {
    "map": lambda numbers: MAP.encode(),
    "about": lambda numbers: b"GDB 99",
    "read": lambda numbers: b"".join(
        CONTENTS[int(a, 16) : int(a, 16) + int(n, 16)]
        for a, n in zip(numbers.split()[::2], numbers.split()[1::2], strict=True)
    ),
}


class Lender:
    """The other end: it answers the requests, and keeps them."""

    def __init__(self, **answers: Answer | None) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.target = f"served:{self._theirs.fileno()}"
        self.requests: list[str] = []
        self._answers = {**ANSWERS, **answers}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._ours, self._ours.makefile("rwb") as stream:
            for line in stream:
                kind, _, numbers = line.decode().strip().partition(" ")
                self.requests.append(kind)
                answer = self._answers[kind]
                if answer is None:
                    self._ours.shutdown(socket.SHUT_RDWR)
                    return
                data = answer(numbers)
                if not data.startswith((b"ok ", b"error ")):
                    data = b"ok %d\n" % len(data) + data
                stream.write(data)
                stream.flush()


def test_records_are_read_and_what_is_no_ram_is_not_asked_for() -> None:
    lender = Lender()
    dump = dump_of(lender.target)
    assert dump.kind == "GDB 99"
    where = addresses([0x3FFF8, 0x10, 1 << 18, 0x2F000, 0x18])
    records = dump.memory.read_many(where, 8)
    assert records.present.tolist() == [True, True, False, True, True]
    for address, data, present in zip(where.tolist(), *records, strict=True):
        assert bytes(data) == (CONTENTS[address : address + 8] if present else bytes(8))
    assert dump.memory.read(0x1234, 100) == CONTENTS[0x1234 : 0x1234 + 100]
    with pytest.raises(MemoryNotReadable, match="not in the target"):
        dump.memory.read(0x3FFFC, 8)


def test_many_ranges_are_asked_for_in_batches() -> None:
    lender = Lender()
    memory = dump_of(lender.target).memory
    where = addresses(range(0, 1 << 18, 0x1000))
    records = memory.read_many(where, 16)
    assert all(
        bytes(data) == CONTENTS[address : address + 16]
        for address, data in zip(where.tolist(), records.data, strict=True)
    )
    assert lender.requests.count("read") == where.size // BATCH > 0


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            lambda numbers: b"error 9\nno target",
            TargetNotSupported,
            "'read 0 800' could not be done: no target",
        ),
        (lambda numbers: b"ok many\n", TargetLost, "'read 0 800' was not answered"),
        (lambda numbers: b"ok -1\n", TargetLost, "announces -1 bytes"),
        (
            lambda numbers: b"ok 99999999999999999999\n",
            TargetLost,
            "announces 99999999999999999999 bytes",
        ),
        (lambda numbers: b"ok 5\nshort", TargetNotSupported, "gave less than was asked"),
        (None, TargetLost, "the connection was closed"),
    ],
)
def test_no_answer_is_an_error(
    answer: Answer | None, kind: type[InspectorError], text: str
) -> None:
    memory = dump_of(Lender(read=answer).target).memory
    with pytest.raises(kind, match=text):
        memory.read(0x100, 8)


def test_a_map_without_ram_is_not_qemus() -> None:
    with pytest.raises(TargetNotSupported, match="shows no RAM"):
        dump_of(Lender(map=lambda numbers: b"unknown command").target)


def test_what_is_no_socket_is_refused() -> None:
    reader, writer = os.pipe()
    for target in ("served:", "served:x", "served:-1", "served:987654", f"served:{reader}"):
        with pytest.raises(TargetNotSupported, match="is not a socket"):
            dump_of(target)
    os.close(reader)
    os.close(writer)
