"""One rmap slot, as arch/powerpc/kvm/book3s_hv_nested.c treats it.

The model keeps the words in list order.  All of them but the last are stored in
list nodes; the last is stored in the slot itself (one entry) or in the last
``next``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from inspector import encoding

__all__ = ["ModelSlot", "Walk", "kernel_walk"]

Walk = Callable[[Sequence[int]], Sequence[int]]
"""Returns those of a slot's words that a walk through it meets."""


def kernel_walk(words: Sequence[int]) -> Sequence[int]:
    """Return the words that the kernel's own walk meets (``for_each_nest_rmap_safe``).

    The macro takes a zero word for the end, so it never meets the entries after
    a node that holds LPID 0, L2 page 0.
    """
    for index, word in enumerate(words):
        if word == 0:
            return words[:index]
    return words


class ModelSlot:
    """The state of one element of ``kvm_memory_slot.arch.rmap[]``."""

    def __init__(self, words: Iterable[int] = ()) -> None:
        self._words = list(words)

    @property
    def words(self) -> tuple[int, ...]:
        """The words in list order, newest first, the last with the single-entry bit."""
        return tuple(self._words)

    @property
    def form(self) -> encoding.SlotForm:
        """Which of the three forms the slot has."""
        if not self._words:
            return encoding.SlotForm.EMPTY
        return encoding.SlotForm.SINGLE if len(self._words) == 1 else encoding.SlotForm.LIST

    def insert(self, lpid: int, gpa: int, walk: Walk = kernel_walk) -> bool:
        """``kvmhv_insert_nest_rmap``: add an entry unless the walk meets it.

        The first entry is stored in the slot itself.  Every further entry is put
        first, in a node, so the oldest entry always stays the last.
        """
        word = encoding.encode(lpid, gpa)
        if not self._words:
            self._words = [word | encoding.SINGLE_ENTRY]
            return True
        if any(encoding.identity(met) == encoding.identity(word) for met in walk(self._words)):
            return False
        self._words.insert(0, word)
        return True

    def remove_all(self, walk: Walk = kernel_walk) -> tuple[int, ...]:
        """``kvmhv_remove_nest_rmap_list``: empty the slot; return the words it acts on."""
        met = tuple(walk(self._words))
        self._words = []
        return met
