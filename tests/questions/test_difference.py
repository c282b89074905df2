"""A state does not differ from itself, and two differ by exactly what was changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector import encoding
from inspector.kvm.snapshot import Gap, LinkProblem, Part, Snapshot, Vm
from inspector.model.vm import EntryState, Leaf, Table, VmState
from inspector.questions.changes import Change, LeafKind, TableName, VmDifference
from inspector.questions.difference import difference
from inspector.structures.radix import LeafTable, TableProblem
from tests.builders import leaf, snapshot_vm, table, vm_states, words
from tests.fixtures import CAPTURES, DIRECTORY, opened

STALE = DIRECTORY / "powernv9-stale.core.zst"


def host(*vms: Vm, page_shift: int = 12) -> Snapshot:
    return Snapshot(release="6.12", build_id="id", page_shift=page_shift, vms=vms)


def one(before: Vm, after: Vm) -> VmDifference:
    (found,) = difference(host(before), host(after)).vms
    return found


def entries(state: VmState) -> Counter[tuple[int, int]]:
    return Counter(
        (gfn, word & ~encoding.SINGLE_ENTRY) for gfn, found in state.slots.items() for word in found
    )


def leaves(state: VmState) -> dict[tuple[TableName, int | None, int], Leaf]:
    tables: list[tuple[TableName, int | None, Table]] = [(TableName.HOST, None, state.host)]
    tables += [(TableName.SHADOW, lpid, one) for lpid, one in state.shadows.items()]
    tables += [
        (TableName.L1, lpid, one) for lpid, one in state.l1_tables.items() if lpid in state.shadows
    ]
    return {(name, lpid, at): leaf for name, lpid, one in tables for at, leaf in one.leaves.items()}


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_a_capture_does_not_differ_from_itself(path: Path) -> None:
    snapshot = opened(path).snapshot
    assert difference(snapshot, snapshot).same


@pytest.mark.slow
@given(vm_states(12, odd_bits=True))
def test_a_state_does_not_differ_from_itself(state: VmState) -> None:
    found = difference(host(snapshot_vm(state)), host(snapshot_vm(state)))
    assert found.same
    assert found.whole


@pytest.mark.slow
@given(vm_states(12, odd_bits=True), vm_states(12, odd_bits=True))
def test_the_difference_is_the_symmetric_one(old: VmState, new: VmState) -> None:
    found = one(snapshot_vm(old), snapshot_vm(new))
    before, after = entries(old), entries(new)
    added = Counter((slot.gfn, word) for slot in found.slots for word in slot.added)
    gone = Counter((slot.gfn, word) for slot in found.slots for word in slot.gone)
    assert added == after - before
    assert gone == before - after
    for slot in found.slots:
        assert slot.before == len(old.slots.get(slot.gfn, ()))
        assert slot.after == len(new.slots.get(slot.gfn, ()))
    at, then = leaves(old), leaves(new)
    changed = {key: (at.get(key), then.get(key)) for key in at.keys() | then.keys()}
    assert {
        (change.table, change.lpid, change.address): (change.before, change.after)
        for change in found.leaves
    } == {key: sides for key, sides in changed.items() if sides[0] != sides[1]}
    came = {c.owner for c in found.fields if c.change is Change.CAME}
    assert came == {f"nested guest {lpid}" for lpid in new.shadows.keys() - old.shadows.keys()}
    gone_guests = {c.owner for c in found.fields if c.change is Change.GONE}
    assert gone_guests == {
        f"nested guest {lpid}" for lpid in old.shadows.keys() - new.shadows.keys()
    }


@pytest.mark.slow
@given(vm_states(12), vm_states(12))
def test_the_other_way_round(old: VmState, new: VmState) -> None:
    one_way = one(snapshot_vm(old), snapshot_vm(new))
    back = one(snapshot_vm(new), snapshot_vm(old))
    assert [(s.gfn, s.added, s.gone) for s in one_way.slots] == [
        (s.gfn, s.gone, s.added) for s in back.slots
    ]
    assert {(t.gfn, t.word, t.before, t.after) for t in one_way.turned} == {
        (t.gfn, t.word, t.after, t.before) for t in back.turned
    }
    assert one_way.same == back.same


SMALL = VmState(
    12,
    table(leaf(0x1000, 0x40_0000), leaf(0x2000, 0x40_1000)),
    {1: words((1, 0x5000), (1, 0x6000), (1, 0x7000))},
    {1: table(leaf(0x5000, 0x40_0000), leaf(0x6000, 0x40_0000))},
)


def test_how_a_leaf_can_change() -> None:
    moved = replace(
        SMALL,
        host=table(leaf(0x1000, 0x40_0000), leaf(0x2000, 0x50_0000)),
        shadows={1: table(leaf(0x5000, 0x40_0000, bits=leaf(0, 0).entry & ~2))},
    )
    found = one(snapshot_vm(SMALL), snapshot_vm(moved))
    assert [(c.table, c.address, c.kind) for c in found.leaves] == [
        (TableName.HOST, 0x2000, LeafKind.MOVED),
        (TableName.SHADOW, 0x5000, LeafKind.BITS),
        (TableName.SHADOW, 0x6000, LeafKind.VANISHED),
    ]
    assert [(t.word & ~1, t.before, t.after) for t in found.turned] == [
        (encoding.encode(1, 0x6000), EntryState.LIVE, EntryState.NO_LEAF)
    ]
    assert found.slots == ()


def test_another_order_is_a_difference() -> None:
    turned = replace(SMALL, slots={1: words((1, 0x6000), (1, 0x5000), (1, 0x7000))})
    (slot,) = one(snapshot_vm(SMALL), snapshot_vm(turned)).slots
    assert (slot.gfn, slot.added, slot.gone) == (1, (), ())


def test_a_guest_that_was_made_again() -> None:
    vm = snapshot_vm(SMALL)
    again = replace(vm, nested=(replace(vm.nested[0], address=vm.nested[0].address + 0x400),))
    (change,) = one(vm, again).fields
    assert (change.owner, change.name) == ("nested guest 1", "address")


def test_vms_are_matched_by_address_then_by_lpid_and_memslots() -> None:
    first, second = snapshot_vm(SMALL), snapshot_vm(SMALL, number=1)
    assert difference(host(first, second), host(second, first)).same
    elsewhere = replace(first, address=first.address + 0x10_0000, pid=9)
    (found,) = difference(host(first), host(elsewhere)).vms
    assert found.change is Change.KEPT
    other = replace(elsewhere, lpid=40)
    changes = [vm.change for vm in difference(host(first), host(other)).vms]
    assert changes == [Change.GONE, Change.CAME]


def holed(source: LeafTable) -> LeafTable:
    return replace(source, problems=(TableProblem(0, 0, "not readable", missing=True),))


def test_what_could_not_be_read_is_not_gone() -> None:
    vm = snapshot_vm(SMALL)
    nested = replace(vm.nested[0], shadow=holed(LeafTable.empty()))
    gaps = (Gap("shadow table", Part.SHADOW), Gap("rmap array", Part.RMAPS))
    rmaps = replace(snapshot_vm(replace(SMALL, slots={})).rmaps, unread=((0, 512),))
    poorer = replace(vm, nested=(nested,), rmaps=rmaps, gaps=gaps)
    for pair in ((vm, poorer), (poorer, vm)):
        both = difference(*(host(side) for side in pair))
        assert both.same
        assert not both.whole
    whole = vm.rmaps
    broken_off = replace(
        whole,
        word=whole.word[:-1],
        node=whole.node[:-1],
        place=whole.place[:-1],
        start=np.minimum(whole.start, whole.word.size - 1),
        problems=(LinkProblem(len(whole) - 1, "unreadable", 0, 0, "gone"),),
    )
    assert difference(host(vm), host(replace(vm, rmaps=broken_off, gaps=gaps))).same
    assert difference(host(replace(vm, rmaps=broken_off, gaps=gaps)), host(vm)).same
    unread = replace(vm, nested=(), unread_guests=None, gaps=gaps)
    found = one(vm, unread)
    assert found.fields == ()
    assert [change for change in found.leaves if change.table is TableName.SHADOW] == []


def test_hosts_of_other_page_sizes_are_not_compared() -> None:
    vm = snapshot_vm(SMALL)
    found = difference(host(vm), host(vm, page_shift=16))
    assert found.vms == ()
    assert not found.whole


def test_a_hash_guest() -> None:
    snapshot = opened(DIRECTORY / "powernv9-hash.core.zst").snapshot
    (vm,) = (vm for vm in snapshot.vms if not vm.radix)
    rmaps = vm.hash_rmaps
    word = rmaps.word.copy()
    word[0] ^= np.uint64(1 << 43)
    changed = replace(vm, hash_rmaps=replace(rmaps, word=word))
    (change,) = one(vm, changed).hashed
    assert change.gfn == int(rmaps.gfn[0])


@given(st.integers(0, 30))
def test_a_slot_that_is_emptied(index: int) -> None:
    (vm,) = opened(STALE).snapshot.vms
    slot = index % len(vm.rmaps)
    kept = vm.rmaps.slot != slot
    rmaps = vm.rmaps
    left = replace(
        rmaps,
        memslot=np.delete(rmaps.memslot, slot),
        gfn=np.delete(rmaps.gfn, slot),
        where=np.delete(rmaps.where, slot),
        head=np.delete(rmaps.head, slot),
        start=np.concatenate(([0], np.cumsum(np.delete(rmaps.length, slot)))).astype(np.int64),
        word=rmaps.word[kept],
        node=rmaps.node[kept],
        place=rmaps.place[kept],
    )
    (change,) = one(vm, replace(vm, rmaps=left)).slots
    assert (change.gfn, change.before, change.after) == (
        int(rmaps.gfn[slot]),
        int(rmaps.length[slot]),
        0,
    )
    assert len(change.gone) == change.before
