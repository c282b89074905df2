"""``struct list_head``: circular doubly linked lists (include/linux/list.h)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from inspector.errors import BadData, InspectorError, MemoryNotReadable
from inspector.structures.space import KernelSpace

__all__ = ["list_entries"]

LIST_LIMIT = 1 << 20
POINTER = 8


def list_entries(kernel: KernelSpace, head: int, struct: str, member: str) -> Iterator[int]:
    """Yield the address of every structure on the list that begins at ``head``.

    A structure whose link cannot be read is yielded too.  What lies behind it
    is met from the end of the list, before the error is raised.

    Raises:
        BadData: the list does not lead back to its head.
        MemoryNotReadable: a link leads nowhere.
    """
    offset = kernel.profile.struct(struct).offset(member)
    next_offset = kernel.profile.struct("list_head").offset("next")
    seen: set[int] = set()

    def links(to_next: int) -> Iterator[int]:
        link = kernel.pointer(head + to_next)
        while link != head:
            if link in seen or len(seen) >= LIST_LIMIT:
                raise BadData(
                    f"the list of struct {struct} at {head:#x} does not lead back to its head: "
                    f"{link:#x} is met twice"
                )
            seen.add(link)
            yield link - offset
            link = kernel.pointer(link + to_next)

    try:
        yield from links(next_offset)
    except MemoryNotReadable:
        # its two pointers are all there is in a struct list_head
        with suppress(InspectorError):
            yield from links(POINTER - next_offset)
        raise
