"""Stops of a machine whose relay no longer answers."""

from __future__ import annotations

import pytest

from inspector.errors import BadData
from inspector.live.lender import ConnectionLost
from inspector.live.machine import LiveMachine
from inspector.live.stub_memory import StubMemory
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges


class _Relay:
    """Holds a machine, and cannot be asked to let it run."""

    def hold(self) -> None:
        """Hold the machine."""

    def go(self) -> None:
        """Raise the error that says why the machine is not let run."""
        raise ConnectionLost("go", "an earlier answer was interrupted")


class _Machine(LiveMachine):
    """An attached machine, made without attaching."""

    def __init__(self) -> None:
        self.keep_stopped, self.stops = False, []
        self._depth, self._stop_began = 0, 0.0
        self._connection = _Relay()  # type: ignore[assignment]
        self._over_stub = StubMemory(lambda ranges: [], Ranges(addresses([]), addresses([])))


@pytest.mark.parametrize("raised", [KeyboardInterrupt, BadData])
def test_what_ends_a_stop_is_what_is_said(raised: type[BaseException]) -> None:
    machine = _Machine()
    with pytest.raises(raised), machine.stopped(), machine.stopped():
        raise raised
    assert machine.stops == []


def test_a_machine_that_cannot_go_on_is_an_error() -> None:
    machine = _Machine()
    with pytest.raises(ConnectionLost, match="'go' was not answered"), machine.stopped():
        pass
