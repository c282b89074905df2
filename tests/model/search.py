"""The shortest way that random operations find to a departure."""

from __future__ import annotations

import random
from contextlib import suppress

from hypothesis import find, settings
from hypothesis.errors import NoSuchExample

from inspector.model.departures import Departure, reading
from inspector.model.holds import Broken
from inspector.model.rules import Rules
from tests.model.world import Step, run, steps

PAGE_SHIFT = 12
EXAMPLES = 1_500
ATTEMPTS = 12


def search(departure: Departure) -> list[Step]:
    """Return a few steps after which something is broken.

    Raises:
        hypothesis.errors.NoSuchExample: none were found.
    """
    rules = reading([departure])
    for seed in range(ATTEMPTS):
        with suppress(NoSuchExample):
            found = _find(rules, seed)
            break
    else:
        raise NoSuchExample(departure.id)
    for index in reversed(range(len(found))):
        fewer = found[:index] + found[index + 1 :]
        if broken_by(fewer, rules):
            found = fewer
    return found


def _find(rules: Rules, seed: int) -> list[Step]:
    return find(
        steps,
        lambda done: bool(broken_by(done, rules)),
        random=random.Random(seed),
        settings=settings(max_examples=EXAMPLES, deadline=None, database=None),
    )


def broken_by(done: list[Step], rules: Rules) -> list[Broken]:
    """Return what is broken after the first step that breaks something."""
    return run(done, rules, PAGE_SHIFT, hardware_sets_rc=False)
