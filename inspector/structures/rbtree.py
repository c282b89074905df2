"""Red-black trees (lib/rbtree.c, include/linux/rbtree.h).

``__rb_parent_color`` of a node holds the address of its parent, and its colour
in bit 0 (1 is black).  The root is black and has no parent, a red node has
black children, and every path from the root to an end has the same number of
black nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.numbers import integer
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison, Mismatch, Word

__all__ = ["tree_nodes"]

POINTER = 8
COLOUR = "__rb_parent_color"
BLACK = 1
FLAGS = 3
"""Bits of ``__rb_parent_color`` that are not part of the address."""


class _Node(NamedTuple):
    """An ``rb_node``; ``colour`` is its ``__rb_parent_color``, None where that is missing."""

    left: int
    right: int
    colour: int | None


class _Visit(NamedTuple):
    """A node on a path from the root, and the visit of its parent."""

    address: int
    node: _Node
    parent: _Visit | None
    black: int
    """Number of black nodes from the root to this node, both included."""

    @property
    def is_red(self) -> bool:
        """Whether it is known to be red."""
        return self.node.colour is not None and not self.node.colour & BLACK


def tree_nodes(
    kernel: KernelSpace, root: int, comparison: Comparison | None = None
) -> Iterator[int]:
    """Yield the address of every ``struct rb_node`` under the node ``root``, in order.

    A node that cannot be read is yielded too.  The nodes under it are
    skipped, and the error is raised after all other nodes.

    Args:
        kernel: the host's kernel.
        root: the address of the topmost node, 0 for an empty tree.
        comparison: receives the parents and colours that are impossible.

    Raises:
        BadData: a node is met twice, so this is not a tree.
        MemoryNotReadable: a node cannot be read.
    """
    walk = _Walk(kernel, root, Comparison() if comparison is None else comparison)
    yield from walk.in_order()
    walk.finish()


class _Walk:
    def __init__(self, kernel: KernelSpace, root: int, comparison: Comparison) -> None:
        self._kernel = kernel
        self._layout = kernel.profile.struct("rb_node")
        self._root = root
        self._comparison = comparison
        self._missing: list[MemoryNotReadable] = []
        self._depths: dict[int, _Visit] = {}
        """For each number of black nodes on a path, the first node met that ends such a path."""

    def in_order(self) -> Iterator[int]:
        """Yield every node from the leftmost to the rightmost."""
        stack: list[_Visit] = []
        seen: set[int] = set()
        address = self._root
        parent: _Visit | None = None
        while stack or address:
            while address:
                if address in seen:
                    raise BadData(
                        f"the red-black tree under {self._root:#x} meets node {address:#x} twice"
                    )
                seen.add(address)
                parent = self._visit(address, parent)
                stack.append(parent)
                address = parent.node.left
            parent = stack.pop()
            yield parent.address
            address = parent.node.right

    def finish(self) -> None:
        """Compare the numbers of black nodes, and raise the first error of a read."""
        if len(self._depths) > 1 and not self._missing:
            (low, one), *_, (high, other) = sorted(self._depths.items())
            self._disagree(
                f"{low} black nodes lead to an end at {one.address:#x}, and {high} to one at "
                f"{other.address:#x}",
                "as many black nodes on every way down",
                self._word(one),
                self._word(other),
            )
        if self._missing:
            raise self._missing[0]

    def _visit(self, address: int, parent: _Visit | None) -> _Visit:
        node = self._node(address)
        black = parent.black if parent else 0
        if node.colour is not None:
            black += node.colour & BLACK
        visit = _Visit(address, node, parent, black)
        self._confirm(visit)
        return visit

    def _node(self, address: int) -> _Node:
        """Read a node: whole if it is all there, otherwise its children."""
        try:
            data = self._kernel.read(address, self._layout.size)
        except MemoryNotReadable:
            # An older capture has only the children.
            return _Node(self._child(address, "rb_left"), self._child(address, "rb_right"), None)

        def member(name: str) -> int:
            offset = self._layout.offset(name)
            return integer(data[offset : offset + POINTER], self._kernel.profile.byte_order)

        colour = member(COLOUR) if COLOUR in self._layout else None
        return _Node(member("rb_left"), member("rb_right"), colour)

    def _child(self, address: int, side: str) -> int:
        try:
            return self._kernel.field("rb_node", address, side)
        except MemoryNotReadable as error:
            self._missing.append(error)
            return 0

    def _word(self, visit: _Visit) -> Word:
        where = visit.address + self._layout.offset(COLOUR)
        return Word(f"rb_node.{COLOUR}", where, visit.node.colour or 0)

    def _disagree(self, summary: str, expected: str, *words: Word) -> None:
        self._comparison.mismatches.append(
            Mismatch(f"the red-black tree under {self._root:#x}: {summary}", expected, words)
        )

    def _confirm(self, visit: _Visit) -> None:
        """Compare a node's parent and colour with the path on which it was reached."""
        self._comparison.words += 1
        node = visit.node
        if node.colour is None:
            self._comparison.lacks("the nodes of the tree have only their children in this target")
            return
        parent = visit.parent.address if visit.parent else 0
        if (node.colour & ~FLAGS) != parent:
            self._disagree(
                f"the node at {visit.address:#x} has the parent {node.colour & ~FLAGS:#x}",
                f"{parent:#x}, from where it was reached",
                self._word(visit),
            )
            return
        self._comparison.confirmed += 1
        if visit.is_red and (visit.parent is None or visit.parent.is_red):
            self._disagree(
                f"the node at {visit.address:#x} is red, and "
                + ("so is its parent" if visit.parent else "the root"),
                "a black node",
                self._word(visit),
            )
        # A path ends wherever a child is missing, and all ends have to have one black count.
        if not (node.left and node.right):
            self._depths.setdefault(visit.black, visit)
