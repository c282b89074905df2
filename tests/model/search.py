"""The shortest way that random operations find to a departure.

python -m tests.model.search [DEPARTURE...]
"""

from __future__ import annotations

import random
import sys
from contextlib import suppress

from hypothesis import find, settings
from hypothesis.errors import NoSuchExample

from inspector.model.departures import DEPARTURES, Departure, reading
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


def main(names: list[str]) -> None:
    """Print what is found of some departures, or of all."""
    for departure in DEPARTURES:
        if departure.id in (names or [departure.id]):
            found = search(departure)
            print(f"{departure.id}: {departure.statement}")
            for step in found:
                print("  ", *(f"{value:#x}" if type(value) is int else value for value in step))
            for item in broken_by(found, reading([departure])):
                print(f"   -> {item.invariant}: {item.where}")


if __name__ == "__main__":
    main(sys.argv[1:])
