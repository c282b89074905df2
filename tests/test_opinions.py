"""Opinions are compared item by item, and each kind of difference is seen."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fixtures.lab.opinions import byinspector, byradix
from fixtures.lab.opinions.compare import KINDS, compare, items, shown, shown_by_debugfs
from fixtures.lab.opinions.state import Vm, by_memslots, from_json, leaves, to_json
from tests.fixtures import SMALL, opened

VALID, LEAF = 1 << 63, 1 << 62


def _mixed() -> list[Vm]:
    return byinspector.state(opened(SMALL).snapshot)


def test_an_opinion_agrees_with_itself_after_a_round_trip() -> None:
    ours = _mixed()
    found = compare(items(ours), items(from_json(json.loads(json.dumps(to_json(ours))))))
    assert found.differences == []
    assert all(found.counts[kind] > 0 for kind in KINDS)


def _order_of_words(vm: Vm) -> None:
    next(words for words in vm.slots.values() if len(words) > 2).reverse()


def _word_lost(vm: Vm) -> None:
    next(iter(vm.slots.values())).pop()


def _leaf_lost(vm: Vm) -> None:
    vm.host.pop()


def _shadow_leaf_other(vm: Vm) -> None:
    table = next(guest.shadow for guest in vm.nested.values() if guest.shadow)
    address, entry, shift, where = table[0]
    table[0] = (address, entry ^ (1 << 12), shift, where)


def _l1_table_gone(vm: Vm) -> None:
    next(guest for guest in vm.nested.values() if guest.l1).l1 = None


def _guest_lost(vm: Vm) -> None:
    vm.nested.popitem()


def _count_other(vm: Vm) -> None:
    next(iter(vm.nested.values())).fields["refcnt"] += 1


def _memslot_other(vm: Vm) -> None:
    next(iter(vm.memslots.values()))["rmap"] += 8


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_order_of_words, "rmap word"),
        (_word_lost, "rmap word"),
        (_leaf_lost, "L0 leaf"),
        (_shadow_leaf_other, "shadow leaf"),
        (_l1_table_gone, "L1 leaf"),
        (_guest_lost, "nested guest"),
        (_count_other, "nested guest"),
        (_memslot_other, "memslot"),
    ],
)
def test_a_difference_is_seen(change: Callable[[Vm], None], kind: str) -> None:
    ours, theirs = _mixed(), _mixed()
    change(theirs[0])
    found = compare(items(ours), items(theirs))
    assert any(line.startswith(kind) for line in found.differences)
    assert compare(items(theirs), items(ours)).counts == found.counts


def test_what_debugfs_shows() -> None:
    (vm,) = _mixed()
    lines = [f" {address:x}: {entry:x} {shift}" for address, entry, shift, _ in vm.host]
    for lpid, guest in vm.nested.items():
        lines.append(f"Nested LPID {lpid}: pgdir: 0x0 0x0 0x0")
        lines += [f" {address:x}: {entry:x} {shift}" for address, entry, shift, _ in guest.shadow]
    theirs = shown_by_debugfs({vm.address: byradix.tables(lines)})
    found = compare(shown([vm]), theirs)
    assert found.differences == []
    assert found.counts["shadow leaf"] == sum(len(guest.shadow) for guest in vm.nested.values())
    vm.host.pop()
    assert len(compare(shown([vm]), theirs).differences) == 1


def test_a_tree_is_walked_by_what_its_entries_say() -> None:
    leaf = VALID | LEAF | 0x7000
    tables = {0: [0, VALID | 0x2000 | 1], 0x2000: [0, leaf]}

    def read(address: int, size: int) -> bytes:
        return b"".join(entry.to_bytes(8, "big") for entry in tables[address])[:size]

    assert list(leaves(read, 0, 1, shift=14)) == [(0x3000, leaf, 12, 0x2008)]


def test_l1_memory_is_read_where_its_vmm_has_it() -> None:
    asked = []

    def read(address: int, size: int) -> bytes:
        asked.append((address, size))
        return bytes(size)

    memslot = {"base_gfn": 16, "npages": 4, "userspace_addr": 0x70000}
    real = by_memslots({1: memslot}, 4096, read)
    real(0x11008, 8)
    assert asked == [(0x71008, 8)]
    with pytest.raises(ValueError, match="no memslot has 0x14000"):
        real(0x14000, 8)
