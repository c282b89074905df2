"""Red-black trees (lib/rbtree.c, include/linux/rbtree.h)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import BadData, MemoryNotReadable
from inspector.structures.space import KernelSpace

__all__ = ["tree_nodes"]


def tree_nodes(kernel: KernelSpace, root: int) -> Iterator[int]:
    """Yield the address of every ``struct rb_node`` under the node ``root``, in order.

    What is under a node that cannot be read is passed over, and the node
    itself is yielded too; the error is raised behind all others.

    Raises:
        BadData: a node is met twice, so this is not a tree.
        MemoryNotReadable: a child pointer leads nowhere.
    """
    stack: list[int] = []
    seen: set[int] = set()
    missing: list[MemoryNotReadable] = []

    def child(node: int, side: str) -> int:
        try:
            return kernel.field("rb_node", node, side)
        except MemoryNotReadable as error:
            missing.append(error)
            return 0

    node = root
    while stack or node:
        while node:
            if node in seen:
                raise BadData(f"the red-black tree under {root:#x} meets node {node:#x} twice")
            seen.add(node)
            stack.append(node)
            node = child(node, "rb_left")
        node = stack.pop()
        yield node
        node = child(node, "rb_right")
    if missing:
        raise missing[0]
