"""A slot followed one word after the other, for comparison with the walk over arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from inspector import encoding

__all__ = ["SlotWord", "walk"]


class SlotWord(NamedTuple):
    """One word met on the way through a slot.

    ``node`` is the address of the node that holds the word, or 0 when the
    word is in the slot itself or in the last ``next``.
    """

    node: int
    word: int


def walk(head: int, read_node: Callable[[int], tuple[int, int]]) -> Iterator[SlotWord]:
    """Follow a slot by its links, in list order, and yield every word.

    Links are followed, not words: a node whose word is zero does not end
    the walk (it does end the kernel's, see ``inspector.model.slot``).  The
    walk ends at an empty or single ``next``, and before a node that was
    already met, so it always ends.

    Args:
        head: the word of the slot.
        read_node: returns ``(next, word)`` of the node at a kernel address.
    """
    seen: set[int] = set()
    link = head
    while encoding.form_of(link) is encoding.SlotForm.LIST and link not in seen:
        seen.add(link)
        node = link
        link, word = read_node(node)
        yield SlotWord(node, word)
    if encoding.form_of(link) is encoding.SlotForm.SINGLE:
        yield SlotWord(0, link)
