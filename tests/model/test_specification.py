"""What must hold holds in the specification, and every departure from it is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from inspector.model.departures import DEPARTURES, Departure, reading
from inspector.model.rules import MUST_HOLD
from tests.model.world import Step, run, steps

PAGE_SHIFTS = st.sampled_from([12, 16])


@settings(max_examples=600, deadline=None)
@given(steps, PAGE_SHIFTS, st.booleans())
def test_what_must_hold_holds(done: list[Step], page_shift: int, hardware: bool) -> None:
    assert not run(done, MUST_HOLD, page_shift, hardware_sets_rc=hardware)


@pytest.mark.parametrize("departure", DEPARTURES, ids=lambda departure: str(departure.id))
def test_a_departure_is_found_and_shrunk(departure: Departure) -> None:
    rules = reading([departure])
    found = find(
        steps,
        lambda done: bool(run(done, rules, 12, hardware_sets_rc=False)),
        random=random.Random(1),
        settings=settings(max_examples=5_000, deadline=None, database=None),
    )
    broken = {item.invariant for item in run(found, rules, 12, hardware_sets_rc=False)}
    assert broken <= set(departure.breaks), found
    assert len(found) <= 8
    assert not run(found, MUST_HOLD, 12, hardware_sets_rc=False)
