"""Words of lists, trees and idrs that confirm each other, and the mismatches where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import LINEAR, Kernel, build
from inspector.errors import BadData, InspectorError
from inspector.image.profile import Profile, StructLayout
from inspector.structures.idr import idr_entries
from inspector.structures.lists import list_entries
from inspector.structures.rbtree import tree_nodes
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison

ORDERS = st.sampled_from("<>")
PROFILES: dict[str, Profile] = {order: build([], byte_order=order).profile for order in "<>"}
VM_LIST = 200
PREV = 8
SLOTS = 40


def space(kernel: Kernel) -> KernelSpace:
    return KernelSpace(kernel.memory(), PROFILES[kernel.byte_order])


class Listed:
    """A list of four VMs, and a way to follow it."""

    def __init__(self) -> None:
        self.kernel = Kernel(4096, "<")
        self.head = self.kernel.kmalloc(16)
        self.vms = [self.kernel.kmalloc(3072) for _ in range(4)]
        self.links = [vm + VM_LIST for vm in self.vms]
        self.kernel.ring(self.head, self.links)
        self.comparison = Comparison()

    def followed(self) -> list[int]:
        found = []
        with suppress(BadData):
            for vm in list_entries(
                space(self.kernel), self.head, "kvm", "vm_list", self.comparison
            ):
                found.append(vm)
        return found


def test_every_link_of_a_list_is_confirmed() -> None:
    listed = Listed()
    assert listed.followed() == listed.vms
    assert (listed.comparison.words, listed.comparison.confirmed) == (5, 5)
    assert listed.comparison.mismatches == []
    assert listed.comparison.missing == []


@pytest.mark.parametrize("place", range(-1, 4))
@pytest.mark.parametrize("target", range(-1, 4))
def test_a_wrong_link_hides_nothing_and_is_said(place: int, target: int) -> None:
    listed = Listed()
    around = [*listed.links, listed.head]
    if around[place + 1] == around[target]:
        return
    listed.kernel.store(around[place], around[target])
    assert sorted(listed.followed()) == sorted(listed.vms)
    (mismatch,) = listed.comparison.mismatches
    assert mismatch.words[0].address == around[place] or mismatch.words[0].value == around[target]


@pytest.mark.parametrize("place", range(-1, 4))
def test_a_wrong_link_back_is_said(place: int) -> None:
    listed = Listed()
    around = [*listed.links, listed.head]
    listed.kernel.store(around[place] + PREV, around[place])
    assert set(listed.followed()) <= set(listed.vms)
    (mismatch,) = listed.comparison.mismatches
    assert mismatch.words[1].address == around[place] + PREV
    assert mismatch.words[1].value == around[place]


def test_a_list_that_disagrees_is_an_error() -> None:
    listed = Listed()
    listed.kernel.store(listed.head, listed.links[1])
    with pytest.raises(BadData, match="disagrees with itself"):
        list(list_entries(space(listed.kernel), listed.head, "kvm", "vm_list"))


def _added(listed: Listed, stores: int) -> None:
    """Leave an insertion at the front after some of its four stores (``__list_add``)."""
    new, following = listed.kernel.kmalloc(3072) + VM_LIST, listed.links[0]
    steps = [
        (following + PREV, new),
        (new, following),
        (new + PREV, listed.head),
        (listed.head, new),
    ]
    for where, value in steps[:stores]:
        listed.kernel.store(where, value)


def _removed(listed: Listed, stores: int) -> None:
    """Leave the removal of the second after some of its two stores (``__list_del``)."""
    before, _, following = listed.links[:3]
    for where, value in [(following + PREV, before), (before, following)][:stores]:
        listed.kernel.store(where, value)


@pytest.mark.parametrize(
    ("change", "stores", "torn"),
    [(_added, n, n in (1, 2, 3)) for n in range(5)] + [(_removed, n, n == 1) for n in range(3)],
)
def test_a_list_in_the_middle_of_a_change_is_a_doubt(
    change: Callable[[Listed, int], None], stores: int, torn: bool
) -> None:
    listed = Listed()
    change(listed, stores)
    found = listed.followed()
    assert set(found) >= set(listed.vms) - {listed.vms[1]}
    assert [bool(mismatch.doubt) for mismatch in listed.comparison.mismatches] == [True] * torn


@pytest.mark.parametrize("target", [0, 2])
def test_what_no_change_leaves_behind_is_no_doubt(target: int) -> None:
    """Several members are skipped, or met again."""
    listed = Listed()
    listed.kernel.store(listed.links[1], listed.head if target == 0 else listed.links[1])
    if target == 0:
        listed.kernel.store(listed.links[0], listed.head)
    listed.followed()
    assert [mismatch.doubt for mismatch in listed.comparison.mismatches] == [""]


@given(st.integers(0, 60), ORDERS)
def test_every_node_of_a_tree_is_confirmed(count: int, order: str) -> None:
    kernel = Kernel(4096, order)
    nodes = [kernel.kmalloc(24) for _ in range(count)]
    root = kernel.rbtree(nodes)
    comparison = Comparison()
    assert list(tree_nodes(space(kernel), root, comparison)) == nodes
    assert (comparison.words, comparison.confirmed) == (count, count)
    assert comparison.mismatches == []
    assert comparison.missing == []


def tree_of(count: int) -> tuple[Kernel, list[int], int]:
    kernel = Kernel(4096, "<")
    nodes = [kernel.kmalloc(24) for _ in range(count)]
    return kernel, nodes, kernel.rbtree(nodes)


@pytest.mark.parametrize("node", range(6))
def test_a_wrong_parent_is_said(node: int) -> None:
    kernel, nodes, root = tree_of(6)
    kernel.store(nodes[node], nodes[node] | (kernel.load(nodes[node]) & 1))
    comparison = Comparison()
    assert list(tree_nodes(space(kernel), root, comparison)) == nodes
    assert any(
        f"{nodes[node]:#x} has the parent {nodes[node]:#x}" in mismatch.summary
        for mismatch in comparison.mismatches
    )


@pytest.mark.parametrize("node", range(6))
def test_a_wrong_colour_is_said(node: int) -> None:
    kernel, nodes, root = tree_of(6)
    kernel.store(nodes[node], kernel.load(nodes[node]) ^ 1)
    comparison = Comparison()
    assert list(tree_nodes(space(kernel), root, comparison)) == nodes
    assert comparison.mismatches
    assert not any(mismatch.doubt for mismatch in comparison.mismatches)


class Numbered:
    """An idr, and a way to follow it."""

    def __init__(self, ids: Sequence[int] = (1, 2, 64, 130)) -> None:
        self.kernel = Kernel(4096, "<")
        self.idr = self.kernel.new("idr")
        self.entries = {number: LINEAR | (0x10000 + 64 * number) for number in ids}
        self.head = self.kernel.xarray(self.entries, self.idr)
        self.kernel.put("idr", self.idr, idr_rt__xa_head=self.head)
        self.comparison = Comparison()

    @property
    def root(self) -> int:
        return self.head & ~3

    @property
    def leaf(self) -> int:
        """The node of the first 64 identifiers."""
        return self.kernel.load(self.root + SLOTS) & ~3

    def followed(self) -> dict[int, int]:
        found = {}
        with suppress(InspectorError):
            for number, pointer in idr_entries(space(self.kernel), self.idr, self.comparison):
                found[number] = pointer
        return found

    def said(self) -> list[tuple[str, bool]]:
        """Follow the idr; return the mismatch's text, and whether it may be legal."""
        self.followed()
        return [(one.summary, bool(one.doubt)) for one in self.comparison.mismatches]


@given(st.sets(st.integers(0, 4095), max_size=70))
def test_every_entry_of_an_idr_is_confirmed(ids: set[int]) -> None:
    numbered = Numbered(sorted(ids))
    assert numbered.followed() == numbered.entries
    assert numbered.comparison.words == numbered.comparison.confirmed >= len(ids)
    assert numbered.comparison.mismatches == []
    assert numbered.comparison.missing == []


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_a_tag_in_a_pointer_is_said_and_the_pointer_followed(bits: int) -> None:
    numbered = Numbered()
    numbered.kernel.store(numbered.leaf + SLOTS + 8, numbered.entries[1] | bits)
    assert numbered.followed() == numbered.entries
    (mismatch,) = numbered.comparison.mismatches
    assert "identifier 1 is" in mismatch.summary
    assert (mismatch.words[0].value, mismatch.doubt) == (numbered.entries[1] | bits, "")


@pytest.mark.parametrize("marker", [0x402, 0x406, 0xFFE, 2, 0x102])
def test_a_marker_is_said_wherever_it_is(marker: int) -> None:
    head, upper, lower = Numbered(), Numbered(), Numbered()
    head.kernel.put("idr", head.idr, idr_rt__xa_head=marker)
    upper.kernel.store(upper.root + SLOTS, marker)
    lower.kernel.store(lower.leaf + SLOTS + 8, marker)
    for numbered, left in ((head, 0), (upper, 2), (lower, 3)):
        assert len(numbered.followed()) == left
        assert any(one.words[0].value == marker for one in numbered.comparison.mismatches)
        assert not any(one.doubt for one in numbered.comparison.mismatches)


def test_a_head_that_is_no_node_is_said() -> None:
    numbered = Numbered()
    numbered.kernel.put("idr", numbered.idr, idr_rt__xa_head=numbered.root)
    assert [doubt for _, doubt in numbered.said()] == [False]


@pytest.mark.parametrize(
    ("member", "value"),
    [("parent", LINEAR | 4096), ("array", LINEAR | 64), ("offset", 5), ("nr_values", 1)],
)
def test_a_node_that_says_it_is_elsewhere_is_said(member: str, value: int) -> None:
    numbered = Numbered()
    numbered.kernel.put("xa_node", numbered.leaf, **{member: value})
    assert [doubt for _, doubt in numbered.said()] == [False]
    assert set(numbered.followed()) == set(numbered.entries)


@pytest.mark.parametrize(("count", "doubt"), [(0, False), (1, False), (3, True), (4, False)])
def test_a_wrong_count_of_a_leaf_is_said(count: int, doubt: bool) -> None:
    """Between two of its stores, idr_alloc leaves a count that is one too high."""
    numbered = Numbered()
    numbered.kernel.put("xa_node", numbered.leaf, count=count)
    assert [told for _, told in numbered.said()] == [doubt]


@pytest.mark.parametrize(("count", "doubt"), [(1, False), (2, True), (4, False)])
def test_a_wrong_count_of_children_is_said(count: int, doubt: bool) -> None:
    """Between two of its stores, idr_get_free leaves a count that is one too low."""
    numbered = Numbered()
    numbered.kernel.put("xa_node", numbered.root, count=count)
    assert [told for _, told in numbered.said()] == [doubt]


def test_an_identifier_that_holds_nothing_is_a_doubt() -> None:
    numbered = Numbered()
    numbered.kernel.store(numbered.leaf + SLOTS + 8, 0)
    assert numbered.said() == [
        (
            f"the idr at {numbered.idr:#x}: slot 1 of the node at {numbered.leaf:#x} is taken and "
            "holds nothing",
            True,
        )
    ]


def test_an_entry_that_is_marked_free_is_said() -> None:
    numbered = Numbered()
    numbered.kernel.store(numbered.leaf + SLOTS + 8 * 7, LINEAR | 0x5000)
    ((text, doubt),) = numbered.said()
    assert "slot 7" in text
    assert "marked free" in text
    assert not doubt


def test_a_head_that_is_about_to_get_a_parent_is_a_doubt() -> None:
    numbered = Numbered((1, 2))
    above = numbered.kernel.new("xa_node", shift=6, count=1)
    numbered.kernel.store(above + SLOTS, numbered.head)
    numbered.kernel.put("xa_node", numbered.root, parent=above)
    assert [doubt for _, doubt in numbered.said()] == [True]


def test_an_older_layout_confirms_nothing_and_says_so() -> None:
    numbered = Numbered()
    old = StructLayout("xa_node", 576, {"shift": (0, 1), "slots": (SLOTS, 512)})
    structs = {**PROFILES["<"].structs, "xa_node": old}
    kernel = KernelSpace(numbered.kernel.memory(), replace(PROFILES["<"], structs=structs))
    assert dict(idr_entries(kernel, numbered.idr, numbered.comparison)) == numbered.entries
    assert numbered.comparison.confirmed == 0
    assert numbered.comparison.missing
