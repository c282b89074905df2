"""What must hold holds in the specification, and every departure from it is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from inspector.model.departures import DEPARTURES, Departure, reading
from inspector.model.rules import MUST_HOLD, Rules
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
        settings=settings(max_examples=3_000, deadline=None, database=None),
    )
    few = _without_needless_steps(found, rules)
    broken = {item.invariant for item in run(few, rules, 12, hardware_sets_rc=False)}
    assert broken <= set(departure.breaks), few
    assert len(few) <= 4, few
    assert not run(few, MUST_HOLD, 12, hardware_sets_rc=False)


def _without_needless_steps(done: list[Step], rules: Rules) -> list[Step]:
    for index in reversed(range(len(done))):
        fewer = done[:index] + done[index + 1 :]
        if run(fewer, rules, 12, hardware_sets_rc=False):
            done = fewer
    return done
