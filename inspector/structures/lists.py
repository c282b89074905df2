"""``struct list_head``: circular doubly linked lists (include/linux/list.h)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import BadData
from inspector.structures.space import KernelSpace

__all__ = ["list_entries"]

LIST_LIMIT = 1 << 20


def list_entries(kernel: KernelSpace, head: int, struct: str, member: str) -> Iterator[int]:
    """Yield the address of every structure on the list that begins at ``head``.

    Raises:
        BadData: the list does not lead back to its head.
        MemoryNotReadable: a link leads nowhere.
    """
    offset = kernel.profile.struct(struct).offset(member)
    next_offset = kernel.profile.struct("list_head").offset("next")
    seen: set[int] = set()
    link = kernel.pointer(head + next_offset)
    while link != head:
        if link in seen or len(seen) >= LIST_LIMIT:
            raise BadData(
                f"the list of struct {struct} at {head:#x} does not lead back to its head: "
                f"{link:#x} is met twice"
            )
        seen.add(link)
        yield link - offset
        link = kernel.pointer(link + next_offset)
