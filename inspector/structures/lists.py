"""``struct list_head``: circular doubly linked lists (include/linux/list.h).

Every member is met by ``next``, and its ``prev`` must lead back to the one
before it.  The kernel inserts and removes with several stores (``__list_add``,
``__list_del``), and takes no lock that can be looked at for all of its lists.
So links that disagree may be a list in the middle of a change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from inspector.errors import BadData, InspectorError, MemoryNotReadable
from inspector.memory.numbers import integer
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison, Mismatch, Word

__all__ = ["list_entries"]

LIST_LIMIT = 1 << 16
"""More than there are LPIDs, and modules."""
POINTER = 8
HALF_WAY = "the list may be in the middle of an insertion or a removal"


def list_entries(
    kernel: KernelSpace, head: int, struct: str, member: str, comparison: Comparison | None = None
) -> Iterator[int]:
    """Yield the address of every structure on the list that begins at ``head``.

    A structure whose link cannot be read is yielded too.  What is beyond a
    link that cannot be read, or beyond one that does not lead back, is met
    from the end of the list, so a wrong link hides nothing.

    Args:
        kernel: the host's kernel.
        head: the address of the list's head.
        struct: the structure the list joins.
        member: its ``struct list_head``.
        comparison: is told of links that disagree.

    Raises:
        BadData: the list does not lead back to its head, or its two
            directions disagree.
        MemoryNotReadable: a link leads nowhere.
    """
    offset = kernel.profile.struct(struct).offset(member)
    ring = _Ring(kernel, head)
    met: list[int] = []
    try:
        for link in ring.forward():
            met.append(link)
            yield link - offset
    except (BadData, MemoryNotReadable) as error:
        for link in ring.backward(met):
            yield link - offset
        raise error
    finally:
        if comparison is not None:
            ring.tell(comparison)


class _Link(NamedTuple):
    """The two pointers of a ``struct list_head``; ``prev`` is None where it is missing."""

    next: int
    prev: int | None


class _Ring:
    """A list, and what became of following it.

    ``words`` links were read and ``confirmed`` of them by their opposites;
    ``torn`` is the first place where two disagree.
    """

    def __init__(self, kernel: KernelSpace, head: int) -> None:
        self._kernel = kernel
        self._head = head
        self._to_next = kernel.profile.struct("list_head").offset("next")
        self._to_prev = POINTER - self._to_next
        self.words = 0
        self.confirmed = 0
        self.torn: Mismatch | None = None

    def _link(self, place: int) -> _Link:
        """Read both pointers; a capture may have the first one only."""
        order = self._kernel.profile.byte_order
        try:
            data = self._kernel.read(place, 2 * POINTER)
        except MemoryNotReadable:
            return _Link(self._kernel.pointer(place + self._to_next), None)
        pair = [integer(data[at : at + POINTER], order) for at in (self._to_next, self._to_prev)]
        return _Link(*pair)

    def forward(self) -> Iterator[int]:
        """Yield every member in order, up to the first whose ``prev`` does not lead back."""
        head = before = self._head
        first = link = self._link(head)
        seen = {head}
        while link.next != head:
            here = link.next
            if here in seen or len(seen) > LIST_LIMIT:
                self._tear(before, here, None)
                raise BadData(
                    f"the list at {head:#x} does not lead back to its head: {here:#x} is met twice"
                )
            seen.add(here)
            try:
                link = self._link(here)
            except MemoryNotReadable:
                yield here
                raise
            self._compare(before, here, link.prev)
            yield here
            before = here
        self._compare(before, head, first.prev)

    def tell(self, comparison: Comparison) -> None:
        """Tell what became of following the list."""
        comparison.words += self.words
        comparison.confirmed += self.confirmed
        if self.torn is not None:
            comparison.mismatches.append(self.torn)
        elif self.confirmed < self.words:
            comparison.lacks("the prev links of the list are missing")

    def backward(self, met: list[int]) -> Iterator[int]:
        """Yield the members that are met from the end, up to one that was met from the front."""
        seen = {self._head, *met}
        place = self._head
        while len(seen) <= LIST_LIMIT:
            try:
                here = self._kernel.pointer(place + self._to_prev)
            except InspectorError:
                return
            if here in seen:
                return
            seen.add(here)
            yield here
            place = here

    def _compare(self, before: int, here: int, prev: int | None) -> None:
        """Hold the link that leads to ``here`` against the one that should lead back."""
        self.words += 1
        if prev is None:
            return
        if prev != before:
            self._tear(before, here, prev)
            raise BadData(
                f"the list at {self._head:#x} disagrees with itself: next at "
                f"{before + self._to_next:#x} leads to {here:#x}, and prev at "
                f"{here + self._to_prev:#x} leads back to {prev:#x}"
            )
        self.confirmed += 1

    def _tear(self, before: int, here: int, prev: int | None) -> None:
        words = [Word("next", before + self._to_next, here)]
        if prev is not None:
            words.append(Word("prev of what it leads to", here + self._to_prev, prev))
        self.torn = Mismatch(
            f"the list at {self._head:#x} disagrees with itself: {before:#x} leads to {here:#x}"
            + (", which was met before" if prev is None else f", which leads back to {prev:#x}"),
            "a ring in which each member leads back to the one before it",
            tuple(words),
            HALF_WAY if prev is not None and self._half_way(before, prev) else "",
        )

    def _half_way(self, before: int, prev: int) -> bool:
        """Say whether the kernel's own stores can leave ``prev`` as it is.

        ``__list_add`` first has the next member lead back to the new one, then
        fills that in, and only then has the one before lead to it: one member
        is met from the end only.  ``__list_del`` first has the next member
        lead back past the one that goes: that is still met from the front.
        """
        with suppress(MemoryNotReadable):
            if self._kernel.pointer(prev + self._to_prev) in (before, 0):
                return True
            if before != self._head:
                return self._kernel.pointer(before + self._to_prev) == prev
        return False
