"""One rmap slot, compared with a formulation that knows nothing of words."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from inspector import encoding
from inspector.encoding import SlotForm
from inspector.model.slot import ModelSlot, kernel_walk
from tests.builders import words

Entry = tuple[int, int]
ENTRIES = st.tuples(st.sampled_from((0, 1, 4095)), st.sampled_from((0, 0x1000, 0xF_FFFF_FFFF_F000)))
REMOVE = None


class Naive:
    """Entries in the order they were inserted; the first stays first."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def met(self) -> list[Entry]:
        """Return the entries that the kernel meets, newest first, up to (0, 0) in a node."""
        newest = self.entries[::-1]
        in_nodes = newest[:-1]
        return newest[: in_nodes.index((0, 0))] if (0, 0) in in_nodes else newest

    def insert(self, entry: Entry) -> bool:
        if entry in self.met():
            return False
        self.entries.append(entry)
        return True


@given(st.lists(st.one_of(ENTRIES, ENTRIES, ENTRIES, st.just(REMOVE)), max_size=30))
@example([(1, 0x1000), (0, 0), (1, 0x1000), (1, 0x1000)])
def test_any_sequence_of_operations(operations: list[Entry | None]) -> None:
    slot, naive = ModelSlot(), Naive()
    for operation in operations:
        if operation is REMOVE:
            met = [encoding.decode(word) for word in slot.remove_all()]
            assert met == naive.met()
            naive = Naive()
        else:
            assert slot.insert(*operation) is naive.insert(operation)
        assert slot.words == words(*naive.entries[::-1])
        assert [encoding.decode(word) for word in kernel_walk(slot.words)] == naive.met()
        length = len(naive.entries)
        forms = (SlotForm.EMPTY, SlotForm.SINGLE, SlotForm.LIST)
        assert slot.form is forms[min(length, 2)]


def test_the_newest_comes_first_and_the_oldest_keeps_the_single_bit() -> None:
    slot = ModelSlot()
    assert [slot.insert(1, page << 12) for page in (5, 6, 7)] == [True] * 3
    assert slot.words == (0x0010_0000_0000_7000, 0x0010_0000_0000_6000, 0x0010_0000_0000_5001)


def test_a_duplicate_is_not_inserted() -> None:
    slot = ModelSlot(words((1, 0x2000), (1, 0x1000)))
    before = slot.words
    assert not slot.insert(1, 0x1000)
    assert not slot.insert(1, 0x2000)
    assert slot.words == before
    assert slot.insert(2, 0x1000)


def test_a_zero_word_in_a_node_hides_what_stands_behind_it() -> None:
    slot = ModelSlot()
    slot.insert(1, 0x1000)
    slot.insert(0, 0)
    assert slot.words == words((0, 0), (1, 0x1000))
    assert len(kernel_walk(slot.words)) == 0
    assert slot.insert(1, 0x1000)
    assert slot.insert(0, 0)
    assert [encoding.decode(word) for word in slot.words] == [
        (0, 0),
        (1, 0x1000),
        (0, 0),
        (1, 0x1000),
    ]
    assert not slot.remove_all()
    assert slot.form is SlotForm.EMPTY


def test_the_oldest_entry_may_be_zero_without_hiding_anything() -> None:
    slot = ModelSlot()
    slot.insert(0, 0)
    slot.insert(1, 0x1000)
    assert len(kernel_walk(slot.words)) == 2
    assert slot.remove_all() == (encoding.encode(1, 0x1000), 1)
