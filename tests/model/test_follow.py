"""The model follows calls: agreement, and each way in which kernel and model can diverge."""

from __future__ import annotations

from typing import Any

import pytest

from inspector import encoding, pte
from inspector.model.events import Array, Call, Divergence, Return, SlotWords, slot_words
from inspector.model.follow import Follower

VM, ARRAY, SHIFT = 0xC000_0000_3000_0000, 0xC008_0000_0020_0000, 12
HOST, SHADOW, L1_LPID = 1, 2, 7
PGD, SLOT_9 = 0xC000_0000_3100_0000, ARRAY + 8 * 9
MEMSLOT = 0xC000_0000_0230_0000
FRAME = 0x555_0000
NODE = 0xC000_0000_0240_0000


class Kernel:
    """Makes the calls a kernel would make, and a follower of them."""

    def __init__(self) -> None:
        self.follower = Follower(SHIFT)
        self.number = 0
        self.last: Divergence | None = None

    def call(
        self,
        function: str,
        *arguments: int,
        parent: int | None = None,
        slots: dict[int, SlotWords] | None = None,
        **values: int | None,
    ) -> int:
        self.number += 1
        event = Call(self.number, function, arguments, parent, values, slots or {})
        self._follow(event)
        return self.number

    def back(
        self,
        number: int,
        result: int = 0,
        slots: dict[int, SlotWords] | None = None,
        **values: int | None,
    ) -> None:
        self._follow(Return(number, result, values, slots or {}))

    def _follow(self, event: Call | Return) -> None:
        assert self.last is None, "the kernel went on behind a divergence"
        self.last = self.follower.follow(event)

    def begin(self) -> None:
        values: dict[str, Any] = {f"third_{k}": v for k, v in ARRAY_FIELDS.items()}
        values |= dict.fromkeys((f"fourth_{name}" for name in ARRAY_FIELDS), None)
        self.back(self.call("kvmppc_core_commit_memory_region_hv", VM, 0, MEMSLOT, 0, 0, **values))
        number = self.call("kvmhv_get_nested", VM, L1_LPID, 1)
        self.back(number, NODE, l1_lpid=L1_LPID, shadow_lpid=SHADOW)
        self.create(HOST, 9 << SHIFT, FRAME)

    def create(self, lpid: int, gpa: int, frame: int, place: int = 0, word: int = 0) -> None:
        number = self.call_create(lpid, gpa, frame, place, word)
        self.back(number)

    def call_create(self, lpid: int, gpa: int, frame: int, place: int = 0, word: int = 0) -> int:
        arguments = (VM, PGD, raw(frame), gpa, 0, 0, lpid, place)
        return self.call("kvmppc_create_pte", *arguments, host_lpid=HOST, word=word or None)

    def fault(self, gpa: int, before: SlotWords, after: SlotWords, node: int = NODE) -> None:
        """L2 touches a page that is L0's page 9."""
        word = encoding.encode(L1_LPID, gpa)
        create = self.call_create(SHADOW, gpa, FRAME, SLOT_9, word)
        self.insert(create, word, before, after, node)
        if self.last is None:
            self.back(create)

    def insert(
        self, parent: int | None, word: int, before: SlotWords, after: SlotWords, node: int = NODE
    ) -> None:
        number = self.call(
            "kvmhv_insert_nest_rmap",
            *(VM, SLOT_9, 0),
            parent=parent,
            slots={SLOT_9: before},
            node=node,
            word=word,
        )
        if self.last is None:
            self.back(number, slots={SLOT_9: after})

    def unmap(self, lpid: int, gpa: int, parent: int | None = None, frame: int = FRAME) -> int:
        arguments = (VM, PGD, gpa, 0, 0, lpid)
        return self.call(
            "kvmppc_unmap_pte", *arguments, parent=parent, host_lpid=HOST, pte=raw(frame)
        )

    def remove(self, parent: int | None, slot: SlotWords) -> int:
        arguments = (VM, MEMSLOT, 9 << SHIFT, FRAME, 1 << SHIFT)
        slots = {SLOT_9: slot} if slot else {}
        return self.call(
            "kvmhv_remove_nest_rmap_range", *arguments, parent=parent, slots=slots, **ARRAY_FIELDS
        )

    @property
    def divergence(self) -> Divergence:
        assert self.last is not None
        return self.last


ARRAY_FIELDS: dict[str, Any] = {"base_gfn": 0, "npages": 64, "rmap": ARRAY}


def raw(frame: int) -> int:
    """Return a leaf as a little-endian kernel has it in a register."""
    entry = pte.VALID | pte.LEAF | frame | pte.READ | pte.WRITE
    return int.from_bytes(entry.to_bytes(8, "big"), "little")


def single(gpa: int) -> int:
    return encoding.encode(L1_LPID, gpa, single=True)


@pytest.fixture
def kernel() -> Kernel:
    made = Kernel()
    made.begin()
    assert made.last is None
    return made


def two_entries(kernel: Kernel) -> SlotWords:
    kernel.fault(0x5000, (0,), (single(0x5000),))
    words = slot_words((encoding.encode(L1_LPID, 0x6000), single(0x5000)), (NODE,))
    kernel.fault(0x6000, (single(0x5000),), words)
    return words


def test_a_list_grows_and_goes(kernel: Kernel) -> None:
    words = two_entries(kernel)
    unmap = kernel.unmap(HOST, 9 << SHIFT)
    remove = kernel.remove(unmap, words)
    for gpa in (0x6000, 0x5000):
        kernel.back(kernel.unmap(SHADOW, gpa, parent=remove))
    kernel.back(remove)
    kernel.back(unmap)
    assert kernel.last is None
    assert not kernel.follower.slots
    assert not kernel.follower.busy
    assert kernel.follower.changed == {SLOT_9}


def test_a_slot_that_is_not_as_it_was_left(kernel: Kernel) -> None:
    two_entries(kernel)
    kernel.fault(0x7000, (single(0x5000),), ())
    assert kernel.divergence.what == "the slot before the call"
    assert kernel.divergence.gfn == 9
    assert kernel.divergence.slot == SLOT_9
    assert kernel.divergence.found == (single(0x5000),)
    assert kernel.divergence.expected != kernel.divergence.found
    assert kernel.divergence.source.endswith("book3s_hv_nested.c")


@pytest.mark.parametrize("after", [(0,), (single(0x5000) ^ 1,), (None,), (single(0x5000), 0, 0)])
def test_an_insertion_that_leaves_something_else(kernel: Kernel, after: SlotWords) -> None:
    kernel.fault(0x5000, (0,), after)
    assert kernel.divergence.what == "the slot after the call"
    assert kernel.divergence.expected == (single(0x5000),)


def test_a_long_list_may_be_cut_off(kernel: Kernel) -> None:
    words = two_entries(kernel)
    kernel.fault(0x7000, words[:1], (NODE + 64,), NODE + 64)
    assert kernel.last is None


def test_an_insertion_that_is_skipped(kernel: Kernel) -> None:
    kernel.create(SHADOW, 0x5000, FRAME, SLOT_9, encoding.encode(L1_LPID, 0x5000))
    assert kernel.divergence.function == "kvmppc_create_pte"
    assert kernel.divergence.what == "the insertion for a new shadow leaf"


def test_a_fault_that_is_to_be_retried_inserts_nothing(kernel: Kernel) -> None:
    word = encoding.encode(L1_LPID, 0x5000)
    number = kernel.call_create(SHADOW, 0x5000, FRAME, SLOT_9, word)
    kernel.back(number, result=(1 << 64) - 11)
    assert kernel.last is None


def test_a_leaf_that_is_there_gets_no_second_entry(kernel: Kernel) -> None:
    kernel.fault(0x5000, (0,), (single(0x5000),))
    kernel.create(SHADOW, 0x5000, FRAME, SLOT_9, encoding.encode(L1_LPID, 0x5000))
    assert kernel.last is None
    kernel.fault(0x5000, (single(0x5000),), (single(0x5000),))
    assert kernel.divergence.what == "an insertion"


def test_a_wrong_lpid(kernel: Kernel) -> None:
    word = encoding.encode(L1_LPID + 1, 0x5000)
    create = kernel.call_create(SHADOW, 0x5000, FRAME, SLOT_9, word)
    kernel.insert(create, word, (0,), ())
    assert kernel.divergence.what == "the word that is inserted"


def test_a_wrong_slot(kernel: Kernel) -> None:
    kernel.create(HOST, 10 << SHIFT, FRAME + 0x1000)
    create = kernel.call_create(
        SHADOW, 0x5000, FRAME + 0x1000, SLOT_9, encoding.encode(L1_LPID, 0x5000)
    )
    kernel.insert(create, encoding.encode(L1_LPID, 0x5000), (0,), ())
    assert kernel.divergence.what == "the slot that an entry is put into"
    assert "0xa" in str(kernel.divergence.expected)


def test_an_insertion_out_of_nowhere(kernel: Kernel) -> None:
    kernel.insert(None, encoding.encode(L1_LPID, 0x5000), (0,), ())
    assert kernel.divergence.what == "an insertion"


def test_a_removal_that_is_skipped(kernel: Kernel) -> None:
    two_entries(kernel)
    kernel.back(kernel.unmap(HOST, 9 << SHIFT))
    assert kernel.divergence.function == "kvmppc_unmap_pte"
    assert kernel.divergence.what == "the removal for a leaf of L0's that is unmapped"


def test_a_shadow_leaf_that_a_removal_leaves(kernel: Kernel) -> None:
    words = two_entries(kernel)
    remove = kernel.remove(kernel.unmap(HOST, 9 << SHIFT), words)
    kernel.back(kernel.unmap(SHADOW, 0x6000, parent=remove))
    kernel.back(remove)
    assert kernel.divergence.what == "the shadow leaves that are removed"
    assert "0x5000" in str(kernel.divergence.expected)


def test_a_shadow_leaf_that_a_removal_does_not_lead_to(kernel: Kernel) -> None:
    words = two_entries(kernel)
    remove = kernel.remove(kernel.unmap(HOST, 9 << SHIFT), words)
    kernel.unmap(SHADOW, 0x5000, parent=remove)
    assert kernel.divergence.what == "the shadow leaf that a removal leads to"


def test_an_entry_that_a_removal_does_not_find(kernel: Kernel) -> None:
    two_entries(kernel)
    kernel.remove(kernel.unmap(HOST, 9 << SHIFT), ())
    assert kernel.divergence.what == "the slot before the call"
    assert kernel.divergence.found == (0,)


def test_a_leaf_that_is_not_what_was_set(kernel: Kernel) -> None:
    kernel.fault(0x5000, (0,), (single(0x5000),))
    kernel.unmap(SHADOW, 0x5000, frame=FRAME + 0x1000)
    assert kernel.divergence.what == "the leaf that is removed"


def test_the_wrong_nested_guest(kernel: Kernel) -> None:
    number = kernel.call("kvmhv_get_nested", VM, L1_LPID, 0)
    kernel.back(number, NODE, l1_lpid=L1_LPID + 1, shadow_lpid=SHADOW)
    assert kernel.divergence.what == "the nested guest that is found"


def test_a_guest_that_is_released_and_its_table(kernel: Kernel) -> None:
    kernel.fault(0x5000, (0,), (single(0x5000),))
    release = kernel.call("kvmhv_release_nested", NODE)
    free = kernel.call("kvmppc_free_pgtable_radix", VM, PGD, SHADOW, parent=release, host_lpid=HOST)
    kernel.back(free)
    kernel.back(release)
    assert kernel.follower.vms[VM].guests == {}
    assert kernel.follower.words(SLOT_9) == (single(0x5000),), "its entries are stale, and stay"


def test_an_array_that_is_freed_takes_its_slots_along(kernel: Kernel) -> None:
    two_entries(kernel)
    kernel.back(kernel.call("kvmppc_core_free_memslot_hv", MEMSLOT, **ARRAY_FIELDS))
    assert kernel.follower.arrays == {}
    assert kernel.follower.slots == {}
    assert kernel.follower.gfn_of(SLOT_9) is None


def test_slots_alone_can_be_followed() -> None:
    follower = Follower(SHIFT, tables=False)
    follower.add_array(Array(VM, ARRAY, 0, 64))
    follower.add_slot(SLOT_9, [single(0x5000)], [])
    word = encoding.encode(L1_LPID, 0x6000)
    before, after = {SLOT_9: (single(0x5000),)}, {SLOT_9: (NODE, single(0x5000), word)}
    values = {"node": NODE, "word": word}
    call = Call(1, "kvmhv_insert_nest_rmap", (VM, SLOT_9, 0), None, values, before)
    assert follower.follow(call) is None
    assert follower.follow(Return(1, 0, {}, after)) is None
