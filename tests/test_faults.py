"""The lab's faults, as far as they can be tested without a machine."""

from __future__ import annotations

import re
from typing import cast

import pytest

from fixtures.lab.faults import code, data
from fixtures.lab.faults.base import Fault, Target
from fixtures.lab.faults.inject import FAULTS
from fixtures.lab.faults.text import move, shift_right
from inspector.checks.base import all_invariants

INVARIANTS = {invariant.id: invariant for invariant in all_invariants()}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_expects_what_there_is(fault: Fault) -> None:
    invariant = INVARIANTS[fault.expected]
    assert bool(fault.passing) is (invariant.passing is not None)


def test_names_are_unique() -> None:
    assert len(FAULTS) == len(code.FAULTS) + len(data.FAULTS)


@pytest.mark.parametrize(
    ("old", "count", "new"), [(0x7BFFA302, 13, 0x7BFF9B42), (0x7BFF8402, 17, 0x7BFF7C42)]
)
def test_shift_by_one_more(old: int, count: int, new: int) -> None:
    """The old instructions are ``srdi r31,r31,12`` and ``srdi r31,r31,16``."""
    assert shift_right(old, count) == new


def test_move() -> None:
    """The new instruction is ``mr r31,r23``, whatever the old one was."""
    match = re.match("(?P<to>r31),(?P<from>r23)", "r31,r23")
    assert match is not None
    assert move("to", "from")(cast(Target, None), 0x7EFFE838, match) == 0x7EFFBB78
