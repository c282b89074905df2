"""Radix trees: both walkers against a dictionary, and trees that are damaged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.mutations.plain import leaves_of
from fixtures.synthetic import Kernel, columns
from inspector import pte
from inspector.memory.numbers import addresses
from inspector.memory.segments import SegmentedMemory
from inspector.model.vm import Leaf
from inspector.structures.radix import LeafTable, collect_leaves, translate
from tests.builders import LEAF_BITS, leaf, table
from tests.memories import without

GIGA = 30


@st.composite
def trees(draw: st.DrawFn) -> dict[int, Leaf]:
    """Return leaves of all sizes, none inside another, some at either end of the tree."""
    found: dict[int, Leaf] = {}
    for giga in draw(st.lists(st.sampled_from((0, 1, 511, 512, (1 << 22) - 1)), unique=True)):
        if draw(st.integers(0, 5)) == 0:
            found[giga << GIGA] = leaf(giga << GIGA, draw(st.integers(0, 99)) << GIGA, GIGA)
            continue
        for region in draw(st.lists(st.sampled_from((0, 1, 511)), unique=True)):
            base = (giga << GIGA) + (region << 21)
            shift = draw(st.sampled_from((12, 16, 21)))
            last = (1 << (21 - shift)) - 1
            for index in draw(st.sets(st.sampled_from((0, 1, last)), min_size=1)) if last else {0}:
                at = base + (index << shift)
                found[at] = leaf(at, draw(st.integers(0, 1 << 20)) << shift, shift)
    return found


def naive(leaves: dict[int, Leaf], address: int) -> int | None:
    for one in leaves.values():
        if 0 <= address - one.address < one.size:
            return one.translate(address)
    return None


def planted(leaves: dict[int, Leaf]) -> tuple[SegmentedMemory, pte.Root]:
    kernel = Kernel(4096, "<")
    root = kernel.tree(columns(leaves.values()))
    return kernel.memory(), pte.Root(root, pte.PGD_BITS)


@pytest.mark.slow
@given(trees(), st.lists(st.integers(0, (1 << 52) - 1), max_size=5))
def test_walk_and_lookup_agree_with_a_dictionary(
    leaves: dict[int, Leaf], others: list[int]
) -> None:
    memory, root = planted(leaves)
    found = collect_leaves(memory, root)
    assert found.problems == ()
    assert leaves_of(found) == leaves
    assert found.address.tolist() == sorted(leaves)
    for place, entry in zip(found.where, found.entry, strict=True):
        assert memory.read(int(place), 8) == int(entry).to_bytes(8, "big")

    asked = [
        address
        for one in leaves.values()
        for address in (one.address - 1, one.address, one.address + one.size - 1)
        if address >= 0
    ]
    asked += [one.address + one.size for one in leaves.values()] + others
    where = addresses([address % (1 << 52) for address in asked])
    expected = [naive(leaves, address) for address in where.tolist()]
    physical, known, _ = translate(memory, root, where)
    assert known.tolist() == [value is not None for value in expected]
    assert physical[known].tolist() == [value for value in expected if value is not None]
    index = found.find(where)
    assert (index >= 0).tolist() == known.tolist()
    hit = index[known]
    translated = found.frame[hit] + (where[known] - found.address[hit])
    assert translated.tolist() == physical[known].tolist()


def test_the_quadrant_of_an_effective_address_is_ignored() -> None:
    memory, root = planted({0x1000: leaf(0x1000, 0x5000)})
    found = translate(memory, root, addresses([0xC000_0000_0000_1234]))
    assert found.physical.tolist() == [0x5234]


SMALL = {0x1000: leaf(0x1000, 0x5000), 1 << 40: leaf(1 << 40, 0x20_0000, 21)}


def poked(offset_of: str, entry: int) -> LeafTable:
    """Walk a tree with another word in one of the places on the way to 0x1000."""
    kernel = Kernel(4096, "<")
    root = kernel.tree(columns(SMALL.values()))
    place = root
    for level in ("pgd", "pud", "pmd", "pte"):
        if level == offset_of:
            break
        word = kernel.read_word(place, pte.BYTE_ORDER)
        place = (word & pte.NEXT_TABLE_MASK) + (8 if level == "pmd" else 0)
    kernel.words(addresses([place]), addresses([entry]), pte.BYTE_ORDER)
    return collect_leaves(kernel.memory(), pte.Root(root, pte.PGD_BITS))


@pytest.mark.parametrize(
    ("place", "entry", "text", "left"),
    [
        ("pgd", LEAF_BITS, "512 GiB", 1),
        ("pgd", pte.VALID | 0x10_0000 | 8, "index width 8", 1),
        ("pgd", pte.VALID | 0x10_0000 | 13, "index width 13", 1),
        ("pgd", pte.VALID | 0x10_0100 | 9, "not aligned", 1),
        ("pgd", pte.VALID | 0x4_0000_0000 | 9, "not readable", 1),
        ("pud", LEAF_BITS | 0x1000, "not aligned to its size", 1),
        ("pud", pte.VALID | 0x10_0000 | 5, "index width 5", 1),
        ("pmd", LEAF_BITS | 0x1_0000, "not aligned to its size", 1),
        ("pmd", pte.VALID | 0x10_0000 | 4, "index width 4", 1),
        ("pte", pte.VALID | 0x10_0000 | 9, "not a leaf", 1),
    ],
)
def test_malformed_parts_are_told_and_the_rest_is_walked(
    place: str, entry: int, text: str, left: int
) -> None:
    found = poked(place, entry)
    assert len(found.problems) == 1
    assert text in found.problems[0].text
    assert found.problems[0].missing is ("not readable" in text)
    assert len(found) == left


def test_an_invalid_entry_is_nothing() -> None:
    found = poked("pmd", (1 << 63) - 1)
    assert found.problems == ()
    assert len(found) == 1


@pytest.mark.parametrize("level", range(4))
def test_a_table_that_leads_to_itself_ends(level: int) -> None:
    kernel = Kernel(4096, "<")
    tables = [kernel.take(8 << 13, 8 << 13), *(kernel.take(4096, 4096) for _ in range(3))]
    for here, following in itertools.pairwise(tables):
        word = pte.VALID | following | 9
        kernel.words(addresses([here]), addresses([word]), pte.BYTE_ORDER)
    back = pte.VALID | tables[level] | (13 if level == 0 else 9)
    kernel.words(addresses([tables[2] + 8]), addresses([back]), pte.BYTE_ORDER)
    found = collect_leaves(kernel.memory(), pte.Root(tables[0], pte.PGD_BITS))
    assert len(found) == 0
    assert len(found.problems) == 1
    expected = "index width 13" if level == 0 else "reached twice"
    assert expected in found.problems[0].text


def test_every_entry_of_a_table_leading_to_itself_costs_one_table() -> None:
    kernel = Kernel(4096, "<")
    root = kernel.take(8 << 13, 8 << 13)
    one = kernel.take(4096, 4096)
    word = np.full(512, pte.VALID | one | 9, dtype=np.uint64)
    kernel.words(addresses(one) + np.arange(512, dtype=np.uint64) * np.uint64(8), word, ">")
    kernel.words(addresses([root]), word[:1], ">")
    found = collect_leaves(kernel.memory(), pte.Root(root, pte.PGD_BITS))
    assert len(found) == 0
    assert len(found.problems) == 512


@pytest.mark.parametrize("root", [pte.Root(0x1000, 13), pte.Root(0x1_0000, 9), pte.Root(0, 5)])
def test_a_root_that_cannot_be_one_is_a_problem(root: pte.Root) -> None:
    memory, _ = planted(SMALL)
    found = collect_leaves(memory, root)
    assert len(found) == 0
    assert [problem.missing for problem in found.problems] == [False]


def test_missing_tables_are_missing_and_not_empty() -> None:
    memory, root = planted(SMALL)
    whole = collect_leaves(memory, root)
    cut = without(memory, int(whole.where[0]) & ~0xFFF, 4096)
    found = collect_leaves(cut, root)
    assert len(found) == 1
    assert [problem.missing for problem in found.problems] == [True]
    assert translate(cut, root, addresses([0x1000, 1 << 40])).known.tolist() == [False, True]
    gone = collect_leaves(without(memory, root.table, 8 << 13), root)
    assert [problem.missing for problem in gone.problems] == [True]


def test_an_empty_table_finds_nothing() -> None:
    none = LeafTable.empty()
    assert none.find(addresses([0, 1, 2])).tolist() == [-1, -1, -1]
    assert len(none) == 0
    assert table().at(0) is None
