"""Red-black trees (lib/rbtree.c, include/linux/rbtree.h)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import BadData
from inspector.structures.space import KernelSpace

__all__ = ["tree_nodes"]


def tree_nodes(kernel: KernelSpace, root: int) -> Iterator[int]:
    """Yield the address of every ``struct rb_node`` under the node ``root``, in order.

    Raises:
        BadData: a node is met twice, so this is not a tree.
        MemoryNotReadable: a child pointer leads nowhere.
    """
    stack: list[int] = []
    seen: set[int] = set()
    node = root
    while stack or node:
        while node:
            if node in seen:
                raise BadData(f"the red-black tree under {root:#x} meets node {node:#x} twice")
            seen.add(node)
            stack.append(node)
            node = kernel.field("rb_node", node, "rb_left")
        node = stack.pop()
        yield node
        node = kernel.field("rb_node", node, "rb_right")
