"""``struct list_head``: circular doubly linked lists (include/linux/list.h).

A list is followed by ``next``, and the ``prev`` of every member must lead back
to the member before it.  The kernel inserts and removes with several stores
(``__list_add``, ``__list_del``), and not every list has a lock that can be
read here.  So links that disagree may belong to a list in the middle of a
change.
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
"""Most members of a list: more than there are LPIDs or modules."""
POINTER = 8
HALF_WAY = "the list may be in the middle of an insertion or a removal"


def list_entries(
    kernel: KernelSpace, head: int, struct: str, member: str, comparison: Comparison | None = None
) -> Iterator[int]:
    """Yield the address of every structure on the list that begins at ``head``.

    A structure whose link cannot be read is yielded too.  The structures
    after such a link, or after a link that does not lead back, are reached
    from the end of the list, so one wrong link hides none of them.

    Args:
        kernel: the host's kernel.
        head: the address of the list's head.
        struct: the name of the structures on the list.
        member: their member that is the ``struct list_head``.
        comparison: receives the links that disagree.

    Raises:
        BadData: the list does not lead back to its head, or its two
            directions disagree.
        MemoryNotReadable: a link cannot be read.
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
    """A list, and the result of following it.

    ``words`` is the number of links that were read, and ``confirmed`` of
    those whose opposite agrees; ``torn`` is the first place where two disagree.
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
        """Read both pointers; an older capture may have only ``next``."""
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
        """Add the result of the walk to a comparison."""
        comparison.words += self.words
        comparison.confirmed += self.confirmed
        if self.torn is not None:
            comparison.mismatches.append(self.torn)
        elif self.confirmed < self.words:
            comparison.lacks("the prev links of the list are missing")

    def backward(self, met: list[int]) -> Iterator[int]:
        """Yield the members from the end, up to one that was already met from the front."""
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
        """Compare the link that leads to ``here`` with the link that should lead back."""
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

        ``__list_add`` first sets ``prev`` of the next member to the new member,
        then fills in the new member, and only then sets ``next`` of the member
        before it: until then, the new member is met only from the end.
        ``__list_del`` first sets ``prev`` of the next member to the member
        before the removed one, which is then still met from the front.
        """
        with suppress(MemoryNotReadable):
            # Insertion: prev is the new member, filled in or still zero.
            if self._kernel.pointer(prev + self._to_prev) in (before, 0):
                return True
            # Removal: before is the removed member.
            if before != self._head:
                return self._kernel.pointer(before + self._to_prev) == prev
        return False
