"""Lists, trees and idrs of the kernel, as a builder writes them and as damage leaves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import LAYOUTS, LINEAR, Kernel, build
from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.image.profile import Profile
from inspector.structures.idr import idr_entries
from inspector.structures.lists import list_entries
from inspector.structures.modules import find_modules, module_symbols
from inspector.structures.rbtree import tree_nodes
from inspector.structures.space import KernelSpace

Item = TypeVar("Item")
ORDERS = st.sampled_from("<>")
NOWHERE = 0xC000_7FFF_0000_0000
PROFILES: dict[str, Profile] = {order: build([], byte_order=order).profile for order in "<>"}


def space(kernel: Kernel) -> KernelSpace:
    return KernelSpace(kernel.memory(), PROFILES[kernel.byte_order])


@given(st.integers(0, 40), ORDERS)
def test_a_list_is_followed_to_its_head(count: int, order: str) -> None:
    kernel = Kernel(4096, order)
    head = kernel.kmalloc(16)
    vms = [kernel.kmalloc(LAYOUTS["kvm"][0]) for _ in range(count)]
    kernel.ring(head, [vm + 200 for vm in vms])
    assert list(list_entries(space(kernel), head, "kvm", "vm_list")) == vms


@pytest.mark.parametrize("back_to", [0, 1, 2])
def test_a_list_that_does_not_lead_back_ends(back_to: int) -> None:
    kernel = Kernel(4096, "<")
    head = kernel.kmalloc(16)
    links = [kernel.kmalloc(16) for _ in range(3)]
    kernel.ring(head, links)
    kernel.store(links[2], links[back_to])
    found = list_entries(space(kernel), head, "kvm", "vm_list")
    assert [next(found) + 200 for _ in links] == links
    with pytest.raises(BadData, match="does not lead back"):
        next(found)


@pytest.mark.parametrize("link", [0, 1, 8, NOWHERE, (1 << 64) - 1, (1 << 64) - 8])
def test_a_link_to_nowhere_is_not_readable(link: int) -> None:
    kernel = Kernel(4096, "<")
    head = kernel.kmalloc(16)
    kernel.store(head, link)
    with pytest.raises(MemoryNotReadable):
        list(list_entries(space(kernel), head, "kvm", "vm_list"))


@given(st.integers(0, 60), ORDERS)
def test_a_tree_is_walked_in_order(count: int, order: str) -> None:
    kernel = Kernel(4096, order)
    nodes = [kernel.kmalloc(24) for _ in range(count)]
    root = kernel.rbtree(nodes)
    assert list(tree_nodes(space(kernel), root)) == nodes


@pytest.mark.parametrize("member", ["rb_left", "rb_right"])
@pytest.mark.parametrize("target", range(7))
def test_a_tree_with_a_cycle_ends(member: str, target: int) -> None:
    kernel = Kernel(4096, "<")
    nodes = [kernel.kmalloc(24) for _ in range(7)]
    root = kernel.rbtree(nodes)
    kernel.put("rb_node", nodes[6], **{member: nodes[target]})
    with pytest.raises(BadData, match="twice"):
        list(tree_nodes(space(kernel), root))


def test_a_child_that_leads_nowhere_is_not_readable() -> None:
    kernel = Kernel(4096, "<")
    node = kernel.kmalloc(24)
    kernel.put("rb_node", node, rb_right=NOWHERE)
    with pytest.raises(MemoryNotReadable):
        list(tree_nodes(space(kernel), node))


def before_the_error(items: Iterator[Item]) -> list[Item]:
    """Return the items that are yielded before the error at the end."""
    seen: list[Item] = []
    try:
        for item in items:
            seen.append(item)
    except MemoryNotReadable:
        return seen
    raise AssertionError("there was no error")


def test_what_is_beside_a_missing_child_is_found() -> None:
    kernel = Kernel(4096, "<")
    nodes = [kernel.kmalloc(24) for _ in range(7)]
    root = kernel.rbtree(nodes)
    kernel.put("rb_node", nodes[1], rb_left=NOWHERE)
    # The address of the missing structure is yielded, too.
    assert before_the_error(tree_nodes(space(kernel), root)) == [NOWHERE, *nodes[1:]]


def idr(kernel: Kernel, head: int, base: int = 0) -> int:
    return kernel.new("idr", idr_rt__xa_head=head, idr_base=base)


@pytest.mark.slow
@given(
    st.dictionaries(
        st.one_of(st.integers(0, 130), st.integers(0, 1 << 24)),
        st.integers(1, 1 << 40).map(lambda n: LINEAR | (n << 3)),
        max_size=30,
    ),
    st.sampled_from((0, 1, 7)),
    ORDERS,
)
def test_every_entry_of_an_idr(entries: dict[int, int], base: int, order: str) -> None:
    kernel = Kernel(4096, order)
    where = idr(kernel, kernel.xarray(entries), base)
    assert list(idr_entries(space(kernel), where)) == sorted(
        (index + base, pointer) for index, pointer in entries.items()
    )


def test_reserved_ids_and_markers_are_passed_over() -> None:
    kernel = Kernel(4096, "<")
    slots = {3: LINEAR | 0x5000, 4: 2, 5: 0x102, 6: 0x402}
    where = idr(kernel, kernel.xarray(slots))
    assert list(idr_entries(space(kernel), where)) == [(3, LINEAR | 0x5000)]


def test_an_idr_whose_nodes_are_shared_ends() -> None:
    """A few nodes that all lead to the next one would have more entries than memory."""
    kernel = Kernel(4096, "<")
    below = 0
    for height in range(8):
        node = kernel.new("xa_node", shift=6 * height)
        for i in range(64):
            kernel.store(node + 40 + 8 * i, below | 2 if below else LINEAR | 4096)
        below = node
    where = idr(kernel, below | 2)
    with pytest.raises(BadData, match="twice"):
        list(idr_entries(space(kernel), where))


def test_an_entry_beyond_all_ids_is_refused() -> None:
    kernel = Kernel(4096, "<")
    below = 0
    for height in range(11):
        node = kernel.new("xa_node", shift=6 * height)
        kernel.store(node + 40 + 8 * 15, below | 2 if below else LINEAR | 4096)
        below = node
    where = idr(kernel, below | 2)
    with pytest.raises(BadData, match="is no id"):
        list(idr_entries(space(kernel), where))


def node_of(head: int) -> int:
    return head & ~3


def corrupt_shift(kernel: Kernel, head: int) -> None:
    kernel.put("xa_node", node_of(head), shift=5)


def corrupt_height(kernel: Kernel, head: int) -> None:
    kernel.put("xa_node", node_of(head), shift=66)


def corrupt_child(kernel: Kernel, head: int) -> None:
    kernel.store(node_of(head) + 40, head)


def corrupt_link(kernel: Kernel, head: int) -> None:
    kernel.store(node_of(head) + 40, NOWHERE | 2)


@pytest.mark.parametrize("damage", [corrupt_shift, corrupt_height, corrupt_child, corrupt_link])
def test_a_damaged_idr_ends_in_an_error(damage: Callable[[Kernel, int], None]) -> None:
    kernel = Kernel(4096, "<")
    head = kernel.xarray(dict.fromkeys((1, 64, 4000), LINEAR | 4096))
    damage(kernel, head)
    where = idr(kernel, head)
    with pytest.raises(InspectorError):
        list(idr_entries(space(kernel), where))


def test_what_is_beside_a_missing_node_of_an_idr_is_found() -> None:
    kernel = Kernel(4096, "<")
    head = kernel.xarray(dict.fromkeys((1, 64, 4000), LINEAR | 4096))
    corrupt_link(kernel, head)
    where = idr(kernel, head)
    seen = before_the_error(idr_entries(space(kernel), where))
    assert [index for index, _ in seen] == [64, 4000]


def test_modules_and_their_symbols() -> None:
    image = build([])
    kernel = KernelSpace(image.memory, image.profile)
    found = find_modules(kernel, {"kvm", "nothing"})
    assert set(found) == {"kvm"}
    assert (found["kvm"] >> 48) == 0xC008
    symbols = module_symbols(kernel, found["kvm"])
    assert symbols.values("vm_list") == [image.vm_list]
    assert symbols.values("kvm") == []


def test_names_beyond_any_module_are_refused() -> None:
    kernel = Kernel(4096, "<")
    symtab = kernel.kmalloc(48)
    kernel.store(symtab + 24, 0xFFFF_FFF0, 4)
    kallsyms = kernel.new("mod_kallsyms", num_symtab=2, symtab=symtab, strtab=symtab)
    module = kernel.new("module", kallsyms=kallsyms)
    with pytest.raises(BadData, match="4294967280 bytes of names"):
        module_symbols(space(kernel), module)


@pytest.mark.parametrize("strtab", [NOWHERE, (1 << 64) - 8])
def test_symbols_whose_names_are_nowhere(strtab: int) -> None:
    kernel = Kernel(4096, "<")
    symtab = kernel.kmalloc(48)
    kernel.store(symtab + 24, 900, 4)
    kallsyms = kernel.new("mod_kallsyms", num_symtab=2, symtab=symtab, strtab=strtab)
    module = kernel.new("module", kallsyms=kallsyms)
    with pytest.raises(MemoryNotReadable):
        module_symbols(space(kernel), module)


@pytest.mark.parametrize("count", [1 << 20, 1 << 12])
def test_symbols_that_are_missing_cost_few_reads(count: int) -> None:
    """The number that a damaged module holds does not matter."""
    kernel = Kernel(4096, "<")
    kallsyms = kernel.new("mod_kallsyms", num_symtab=count, symtab=NOWHERE, strtab=NOWHERE)
    module = kernel.new("module", kallsyms=kallsyms)
    with mock.patch.object(
        KernelSpace, "read", autospec=True, side_effect=KernelSpace.read
    ) as read:
        with pytest.raises(MemoryNotReadable):
            module_symbols(space(kernel), module)
        assert read.call_count < 20


@pytest.mark.parametrize("count", [0, 1 << 21, 0xFFFF_FFFF])
def test_a_symbol_count_that_cannot_be_is_refused(count: int) -> None:
    kernel = Kernel(4096, "<")
    kallsyms = kernel.new("mod_kallsyms", num_symtab=count)
    module = kernel.new("module", kallsyms=kallsyms)
    with pytest.raises(TargetNotSupported, match="CONFIG_KALLSYMS"):
        module_symbols(space(kernel), module)
