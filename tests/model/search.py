"""The shortest way that random operations find to a departure."""

from __future__ import annotations

import random

from hypothesis import find, settings

from inspector.model.departures import Departure, reading
from inspector.model.holds import Broken
from inspector.model.rules import Rules
from tests.model.world import Step, run, steps

PAGE_SHIFT = 12
EXAMPLES = 3_000


def search(departure: Departure) -> list[Step]:
    """Return a few steps after which something is broken.

    Raises:
        hypothesis.errors.NoSuchExample: none were found.
    """
    rules = reading([departure])
    found = find(
        steps,
        lambda done: bool(broken_by(done, rules)),
        random=random.Random(1),
        settings=settings(max_examples=EXAMPLES, deadline=None, database=None),
    )
    for index in reversed(range(len(found))):
        fewer = found[:index] + found[index + 1 :]
        if broken_by(fewer, rules):
            found = fewer
    return found


def broken_by(done: list[Step], rules: Rules) -> list[Broken]:
    """Return what is broken after the first step that breaks something."""
    return run(done, rules, PAGE_SHIFT, hardware_sets_rc=False)
