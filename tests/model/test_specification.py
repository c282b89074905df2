"""The invariants hold in the specification, and every departure from it is found."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.checks.base import all_invariants
from inspector.model.departures import AS_IT_IS, DEPARTURES, Departure, reading
from inspector.model.holds import BEYOND_MEMORY
from inspector.model.page_fault import Access
from inspector.model.rules import MUST_HOLD
from inspector.pte import READ
from tests.model.search import broken_by, search
from tests.model.world import (
    ALL_RIGHTS,
    DATA,
    DATA_GPA,
    HUGE,
    MIB,
    ODD_GPA,
    RC,
    Step,
    World,
    run,
    steps,
)
from tests.profiles import examples

PAGE_SHIFTS = st.sampled_from([12, 16])
BELOW, BEHIND = ODD_GPA, ODD_GPA + MIB


@pytest.mark.slow
@settings(max_examples=examples(600), deadline=None)
@given(steps, PAGE_SHIFTS, st.booleans())
def test_what_must_hold_holds(done: list[Step], page_shift: int, hardware: bool) -> None:
    assert not run(done, MUST_HOLD, page_shift, hardware_sets_rc=hardware)


@pytest.mark.slow
@pytest.mark.parametrize("departure", DEPARTURES, ids=lambda departure: str(departure.id))
def test_a_departure_is_found_and_shrunk(departure: Departure) -> None:
    for seed in range(examples(1)):
        found = search(departure, seed)
        broken = {item.invariant for item in broken_by(found, reading([departure]))}
        assert broken <= set(departure.breaks), found
        assert len(found) <= 4, found
        assert not broken_by(found, MUST_HOLD)


@pytest.mark.parametrize("gpa", [DATA_GPA + 0x1_0000, DATA_GPA + 2 * MIB + 0x1_0000])
def test_a_range_that_ends_inside_a_large_page(gpa: int) -> None:
    """The large page is split at either end of the range."""
    steps = [
        ("log_dirty", DATA, True),
        ("put", 0, 0x1_0000, DATA_GPA + 2 * MIB, HUGE, ALL_RIGHTS | RC, Access.READ),
        ("throw_away", gpa, (2 * MIB) >> 12),
    ]
    assert not run(steps, MUST_HOLD, 12, hardware_sets_rc=False)


def test_what_departures_break_is_known() -> None:
    known = {invariant.id for invariant in all_invariants()} | BEYOND_MEMORY
    assert {name for departure in DEPARTURES for name in departure.breaks} <= known


@pytest.mark.parametrize(("page", "slot"), [(BELOW, "slot -256 "), (BEHIND, "slot 272 ")])
def test_large_pages_across_a_memslot(page: int, slot: str) -> None:
    """An index before the array is used at once, one after it when the page goes away."""
    world = World(12, AS_IT_IS, hardware_sets_rc=True)
    world.put(1, 0, page, 12, ALL_RIGHTS | RC, Access.WRITE)
    if page == BEHIND:
        assert not _outside(world)
        world.throw_away(page, 1)
    assert any(place.startswith(slot) for place in _outside(world))


def _outside(world: World) -> list[str]:
    return [item.where for item in world.broken() if item.invariant == "rmap-array"]


def test_a_word_of_zero_hides_the_entries_behind_it() -> None:
    world = World(12, AS_IT_IS, hardware_sets_rc=True)
    world.put(1, 0, DATA_GPA, 12, READ | RC, Access.READ)
    assert not world.broken()
    world.put(0, 0, DATA_GPA, 12, READ | RC, Access.READ)
    assert {item.invariant for item in world.broken()} == {"shadow-leaf-covered"}
