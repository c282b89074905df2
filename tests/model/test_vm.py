"""The model's judgement of single entries and leaves."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from inspector import pte
from inspector.model.vm import EntryState, Leaf, LeafState, VmState, judge_entry, judge_leaf
from tests.builders import leaf, table, words

HOST = table(leaf(0x1000, 0x40_1000), leaf(0x2000, 0x40_2000), leaf(0x20_0000, 0x80_0000, 21))
Slots = Mapping[int, tuple[int, ...]]

WORD = words((1, 0x5000))[0]


def state(shadow: Leaf | None = None, slots: Slots | None = None) -> VmState:
    return VmState(12, HOST, dict(slots or {}), {1: table(*([shadow] if shadow else []))})


@pytest.mark.parametrize(
    ("gfn", "shadow", "expected"),
    [
        (1, leaf(0x5000, 0x40_1000), EntryState.LIVE),
        (2, leaf(0x5000, 0x40_1000), EntryState.MOVED),
        (1, None, EntryState.NO_LEAF),
        (3, leaf(0x5000, 0x40_1000), EntryState.NO_HOST_PAGE),
        (0x200, leaf(0x5000, 0x80_5000), EntryState.LIVE),
        (0x2FF, leaf(0x5000, 0x80_5000), EntryState.LIVE),
        (0x200, leaf(0x5000, 0xA0_0000), EntryState.MOVED),
    ],
)
def test_entries(gfn: int, shadow: Leaf | None, expected: EntryState) -> None:
    assert judge_entry(state(shadow), gfn, WORD) is expected


def test_an_entry_of_no_guest() -> None:
    assert judge_entry(state(), 1, words((2, 0x5000))[0]) is EntryState.NO_GUEST


@pytest.mark.parametrize(
    ("frame", "slots", "expected"),
    [
        (0x40_1000, {1: (WORD,)}, LeafState.COVERED),
        (0x40_1000, {1: words((2, 0x5000), (1, 0x5000))}, LeafState.COVERED),
        (0x40_1000, {1: words((0, 0), (1, 0x5000))}, LeafState.HIDDEN),
        (0x40_1000, {1: words((0, 0), (1, 0x5000)), 2: (WORD,)}, LeafState.HIDDEN),
        (0x40_1000, {}, LeafState.LOST),
        (0x40_1000, {2: (WORD,)}, LeafState.LOST),
        (0x40_1000, {1: words((1, 0x6000))}, LeafState.LOST),
        (0x80_5000, {0x200: (WORD,)}, LeafState.COVERED),
        (0x80_5000, {0x3FF: (WORD,)}, LeafState.COVERED),
        (0x80_5000, {0x400: (WORD,)}, LeafState.LOST),
        (0xF9_0000, {}, LeafState.UNMAPPED),
        (0xF9_0000, {1: (WORD,)}, LeafState.UNMAPPED),
    ],
)
def test_leaves(frame: int, slots: Slots, expected: LeafState) -> None:
    shadow = leaf(0x5000, frame)
    assert judge_leaf(state(shadow, slots), 1, shadow).state is expected


def with_l1(frame: int, slots: Slots, l1: Leaf) -> LeafState:
    shadow = leaf(0x5000, frame)
    vm = state(shadow, slots)
    vm.l1_tables[1] = table(l1)
    return judge_leaf(vm, 1, shadow).state


def test_a_frame_that_is_not_where_the_tables_lead() -> None:
    slots = {1: (WORD,)}
    assert with_l1(0x40_2000, slots, leaf(0x5000, 0x1000)) is LeafState.MOVED
    assert with_l1(0xF9_0000, slots, leaf(0x5000, 0x1000)) is LeafState.MOVED
    # L1 has changed its table, and the entry is still where the page was.
    assert with_l1(0x40_1000, slots, leaf(0x5000, 0x2000)) is LeafState.COVERED
    assert with_l1(0x40_1000, {}, leaf(0x5000, 0x1000)) is LeafState.LOST


def test_a_judgement_says_what_it_was_made_of() -> None:
    shadow = leaf(0x5000, 0x40_1000)
    vm = state(shadow, {1: words((1, 0x6000), (1, 0x5000))})
    vm.l1_tables[1] = table(leaf(0x5000, 0x2000))
    judgement = judge_leaf(vm, 1, shadow)
    assert [(place.gfn, place.position, place.reachable) for place in judgement.entries] == [
        (1, 1, True)
    ]
    assert judgement.backing == (leaf(0x1000, 0x40_1000),)
    assert judgement.expected == 0x40_2000
    assert judgement.agrees(shadow) is False
    assert judgement.agrees(leaf(0x5000, 0x40_2000)) is True


def test_an_unknown_l1_table_agrees_with_nothing() -> None:
    shadow = leaf(0x5000, 0x40_1000)
    assert judge_leaf(state(shadow), 1, shadow).agrees(shadow) is None


def test_a_table_finds_leaves_of_every_size() -> None:
    leaves = (
        leaf(0x1000, 0x1000),
        leaf(0x1_0000, 0x1_0000, 16),
        leaf(0x20_0000, 0x20_0000, 21),
        leaf(1 << 30, 1 << 30, 30),
    )
    tree = table(*leaves)
    for one in leaves:
        assert tree.at(one.address) == one
        assert tree.at(one.address + one.size - 1) == one
        assert tree.at(one.address + one.size) is None
        assert tree.onto(one.frame + one.size - 1) == [one]
    assert tree.at(0) is None


def test_a_leaf_translates_inside_itself() -> None:
    huge = leaf(0x20_0000, 0x80_0000, 21)
    assert (huge.size, huge.frame) == (0x20_0000, 0x80_0000)
    assert huge.translate(0x20_1234) == 0x80_1234
    assert pte.size_name(huge.shift) == "2M"
