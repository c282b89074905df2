"""A short way to a departure, found by random operations.

python -m tests.model.search [DEPARTURE...]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

from inspector.model.departures import DEPARTURES, Departure, reading
from inspector.model.holds import Broken
from inspector.model.rules import Rules
from tests.model.world import KINDS, Act, Step, run

PAGE_SHIFT = 12
STEPS = 12
SEQUENCES = 5_000
"""The departure that is hardest to find takes 350 sequences on average."""

ACTS = [act for kind in KINDS for act in kind]


def search(departure: Departure, seed: int = 0) -> list[Step]:
    """Return a few steps after which an invariant is broken, none of which can be left out.

    The sequences are random and long. ``hypothesis.find``, which varies short
    sequences, takes 20 times as long.

    Raises:
        LookupError: no such steps were found.
    """
    rules = reading([departure])
    source = random.Random(seed)
    for _ in range(SEQUENCES):
        done = [_drawn(source) for _ in range(STEPS)]
        if broken_by(done, rules):
            return _shrunk(done, rules)
    raise LookupError(f"{departure.id}: nothing was broken in {SEQUENCES} sequences")


def broken_by(done: list[Step], rules: Rules) -> list[Broken]:
    """Return the invariants that are broken after the first step that breaks any."""
    return run(done, rules, PAGE_SHIFT, hardware_sets_rc=False)


def _drawn(source: random.Random) -> Step:
    act = source.choice(source.choice(KINDS))
    return (act.name, *(source.choice(choices) for choices in act.choices))


def _shrunk(done: list[Step], rules: Rules) -> list[Step]:
    """Replace the sequence with the first plainer one that breaks something, until none does."""
    while True:
        for plainer in _plainer(done):
            if broken_by(plainer, rules):
                done = plainer
                break
        else:
            return done


def _plainer(done: list[Step]) -> Iterator[list[Step]]:
    """Yield sequences without one step, from the last step on, then with a plainer argument."""
    for index in reversed(range(len(done))):
        yield done[:index] + done[index + 1 :]
    for index, step in enumerate(done):
        for argument, choices in enumerate(_act_of(step).choices, 1):
            for choice in choices[: choices.index(step[argument])]:
                plain = (*step[:argument], choice, *step[argument + 1 :])
                yield [*done[:index], plain, *done[index + 1 :]]


def _act_of(step: Step) -> Act:
    return next(act for act in ACTS if act.name == step[0])


def main(names: list[str]) -> None:
    """Print the steps that are found for some departures, or for all of them."""
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
