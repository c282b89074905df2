"""Stops of a machine whose relay does not answer any more."""

from __future__ import annotations

import pytest

from inspector.errors import BadData
from inspector.memory.base import addresses
from inspector.memory.lender import Lost
from inspector.memory.live import LiveMachine
from inspector.memory.ram import RamMap
from inspector.memory.stub import StubMemory


class _Relay:
    """Holds a machine, and cannot be asked to let it go on."""

    def hold(self) -> None:
        """Do so."""

    def go(self) -> None:
        """Say why not."""
        raise Lost("go", "an earlier answer was interrupted")


class _Machine(LiveMachine):
    """An attached machine, without the attaching."""

    def __init__(self) -> None:
        self.stays, self.stops = False, []
        self._depth, self._stop_began = 0, 0.0
        self._relay = _Relay()  # type: ignore[assignment]
        self._over_stub = StubMemory(lambda ranges: [], RamMap(addresses([]), addresses([])))


@pytest.mark.parametrize("raised", [KeyboardInterrupt, BadData])
def test_what_ends_a_stop_is_what_is_said(raised: type[BaseException]) -> None:
    machine = _Machine()
    with pytest.raises(raised), machine.stopped(), machine.stopped():
        raise raised
    assert machine.stops == []


def test_a_machine_that_cannot_go_on_is_an_error() -> None:
    machine = _Machine()
    with pytest.raises(Lost, match="'go' was not answered"), machine.stopped():
        pass
