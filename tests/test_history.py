"""A stop's addresses are turned into writers with names."""

from __future__ import annotations

from typing import Any, cast

import pytest

from inspector.errors import BadData
from inspector.following.history import Wanted, _named, _words
from inspector.following.sweep import Hit
from inspector.kernel.symbols import CodePlace
from inspector.structures.space import KernelSpace
from tests.fixtures import DIRECTORY, opened

NAMES = {0x100: "llist_add", 0x200: "kvmhv_insert", 0x300: "kvm_fault", 0x400: "syscall"}


class Table:
    """Functions of 0x100 bytes each."""

    def at(self, address: int) -> CodePlace:
        begin = address & ~0xFF
        return CodePlace(address, NAMES.get(begin, ""), address - begin)


def named(pc: int, link: int, *saved: int) -> list[str]:
    hit = Hit(0, 1, pc, None, 0, 1, link, saved)
    write = _named(hit, cast(Any, Table()))
    return [place.function for place in (write.where, *write.callers)]


def test_a_leaf_has_its_caller_in_the_link_register() -> None:
    assert named(0x104, 0x210, 0x310, 0x410, 0x999) == [
        "llist_add",
        "kvmhv_insert",
        "kvm_fault",
        "syscall",
    ]


def test_a_function_with_a_frame_has_it_on_the_stack() -> None:
    whole = ["kvmhv_insert", "kvm_fault", "syscall"]
    assert named(0x204, 0x310, 0x310, 0x410) == whole, "not clobbered yet"
    assert named(0x204, 0x220, 0x310, 0x410) == whole, "left by a call that came back"


ACQUIRED = opened(DIRECTORY / "powernv9-list-one-lpid.core.zst")
KERNEL = KernelSpace(ACQUIRED.memory, ACQUIRED.profile)


def words(wanted: Wanted) -> list[tuple[int, int]]:
    found = _words(ACQUIRED.snapshot, KERNEL, wanted)
    for word in found:
        assert word.physical == KERNEL.physical(word.address)
    return [(word.address, word.value) for word in found]


def test_every_slot_and_every_entry_with_its_link() -> None:
    (vm,) = ACQUIRED.snapshot.vms
    for slot in vm.rmaps:
        assert words(Wanted(slot.gfn)) == [(slot.where, slot.head)]
        assert words(Wanted(address=slot.where)) == [(slot.where, slot.head)]
        assert words(Wanted(slot.gfn, vm=vm.lpid)) == [(slot.where, slot.head)]
        link = (slot.where, slot.head)
        for entry, word in enumerate(slot.words.tolist()):
            node = int(slot.nodes[entry])
            found = words(Wanted(slot.gfn, entry))
            assert found == ([(node + 8, word), link] if node else [link])
            assert link[1] == (node or word)
            link = (node, KERNEL.pointer(node)) if node else link
        with pytest.raises(BadData, match=f"has {len(slot.words)} entries"):
            words(Wanted(slot.gfn, len(slot.words)))


def test_an_empty_slot_has_a_history_too() -> None:
    (vm,) = ACQUIRED.snapshot.vms
    (memslot,) = vm.memslots
    used = {slot.gfn for slot in vm.rmaps}
    gfn = next(gfn for gfn in range(memslot.base_gfn, memslot.npages) if gfn not in used)
    assert words(Wanted(gfn)) == [(memslot.rmap + 8 * (gfn - memslot.base_gfn), 0)]
    with pytest.raises(BadData, match="has 0 entries"):
        words(Wanted(gfn, 0))


def test_what_is_nowhere() -> None:
    (vm,) = ACQUIRED.snapshot.vms
    for wanted in (Wanted(1 << 40), Wanted(vm.rmaps[0].gfn, vm=4000)):
        with pytest.raises(BadData, match="no memslot"):
            words(wanted)
