"""Memory behind QEMU's stub: which bytes are kept while the machine is stopped, and how long."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from inspector.live.stub_memory import FEW, StubMemory
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges

SIZE = 1 << 16


class Machine:
    """Stops for the length of a block, and changes all of its memory whenever it runs again."""

    def __init__(self) -> None:
        self.stops = self.asked = self._depth = 0
        self.memory = StubMemory(
            self._read_ranges, Ranges(addresses([0]), addresses([SIZE])), self.stopped
        )

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self._depth += 1
        yield
        self._depth -= 1
        if not self._depth:
            self.memory.forget()
            self.stops += 1

    def _read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        assert self._depth, "read while it runs"
        self.asked += len(ranges)
        return [bytes([self.stops]) * length for _, length in ranges]


def test_nothing_is_kept_of_a_machine_that_runs() -> None:
    machine = Machine()
    for stop in range(4):
        assert machine.memory.read(0, 8) == bytes([stop]) * 8
        assert machine.stops == stop + 1


def test_records_in_old_and_new_packets_are_of_one_moment() -> None:
    machine = Machine()
    machine.memory.read(0, 8)
    found = machine.memory.read_many(addresses([0, 1 << 12, 1 << 13]), 8)
    assert (found.data == 1).all()
    assert machine.stops == 2


def test_within_a_stop_a_packet_is_asked_for_once() -> None:
    machine = Machine()
    with machine.stopped():
        for _ in range(3):
            machine.memory.read_many(addresses([16, 1 << 12]), 8)
        assert machine.asked == 2
        machine.memory.read_many(addresses([16, 1 << 13]), 8)
        assert machine.asked == 3
    assert machine.stops == 1


def test_many_records_are_read_in_one_stop() -> None:
    machine = Machine()
    machine.memory.read_many(np.arange(2 * FEW, dtype=np.uint64) * np.uint64(1 << 11), 8)
    assert machine.stops == 1


def test_what_is_not_ram_needs_no_stop() -> None:
    machine = Machine()
    assert not machine.memory.read_many(addresses([SIZE, 1 << 40]), 8).present.any()
    assert machine.stops == 0
