"""``struct idr`` over an xarray (include/linux/idr.h, lib/radix-tree.c).

An entry whose low two bits are ``10`` is internal: a node when it is above
the small reserved values, otherwise a sibling, retry or zero marker.
``idr_find`` follows nodes down to those with a shift of 0 and returns what
their slot holds, whatever its low bits say.  NULL slots are legal: KVM
reserves an LPID before it fills it in.

Every node holds much of this twice.  The mark IDR_FREE is clear for an
identifier that is taken.  ``count`` is the number of taken identifiers in a
node with a shift of 0, and the number of children in any other node.  A node
also holds its parent, its offset in the parent, and the idr.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.numbers import U64, integer
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison, Mismatch, Word

__all__ = ["idr_entries"]

INTERNAL_MASK = 3
INTERNAL = 2
RESERVED = 4096
POINTER = 8
ID_LIMIT = 1 << 32
"""Identifiers are 32-bit integers."""

HALF_WAY = (
    "KVM reserves an identifier without a lock that can be read here, so the idr may be in the "
    "middle of a reservation"
)


def idr_entries(
    kernel: KernelSpace, idr: int, comparison: Comparison | None = None
) -> Iterator[tuple[int, int]]:
    """Yield ``(id, pointer)`` for every entry of the idr at ``idr`` that is not NULL.

    The low bits of an entry are cleared, and noted in ``comparison``.  A node
    that cannot be read is skipped with everything under it, and the error is
    raised after all other entries.

    Raises:
        BadData: the nodes do not form a tree.
        MemoryNotReadable: a node cannot be read.
    """
    base = kernel.field("idr", idr, "idr_base")
    walk = _Walk(kernel, idr, Comparison() if comparison is None else comparison)
    for index, pointer in walk.from_head():
        if index + base >= ID_LIMIT:
            raise BadData(f"the idr at {idr:#x} has an entry {index + base:#x}, which is no id")
        yield index + base, pointer
    if walk.missing:
        raise walk.missing[0]


class _Place(NamedTuple):
    """The address of a word that holds an entry, and the entry."""

    address: int
    entry: int

    def word(self, what: str) -> Word:
        return Word(what, self.address, self.entry)


class _Node(NamedTuple):
    """An ``xa_node``: its slots, and its other members if the target has them.

    Where it does not, ``parent`` and ``free`` are None and the others 0.
    ``free`` has a bit for each slot, set where the mark IDR_FREE is set.
    """

    address: int
    shift: int
    slots: U64
    parent: int | None = None
    array: int = 0
    counted: int = 0
    values: int = 0
    offset: int = 0
    free: int | None = None


class _Walk:
    """One walk over the nodes of an idr; ``missing`` has an error for each unreadable node."""

    def __init__(self, kernel: KernelSpace, idr: int, comparison: Comparison) -> None:
        self._kernel = kernel
        self._idr = idr
        self._layout = kernel.profile.struct("xa_node")
        self._to_slots, size = self._layout.place("slots")
        self._bits = (size // POINTER).bit_length() - 1
        self._comparison = comparison
        self._seen: set[int] = set()
        self.missing: list[MemoryNotReadable] = []

    def from_head(self) -> Iterator[tuple[int, int]]:
        """Yield every entry, from the idr's head on."""
        offset = self._kernel.profile.struct("idr").offset("idr_rt.xa_head")
        head = _Place(self._idr + offset, self._kernel.pointer(self._idr + offset))
        if head.entry:
            yield from self._below(head, 0, None)

    def _below(self, place: _Place, index: int, above: _Node | None) -> Iterator[tuple[int, int]]:
        """Yield the entries under one that is not NULL; ``above`` is the node that holds it."""
        entry = place.entry
        self._comparison.words += 1
        if (entry & INTERNAL_MASK) != INTERNAL:
            self._disagree(
                f"the {'head' if above is None else 'entry'} {entry:#x} leads to no node",
                "NULL or a node, which has 10 in its low bits: an idr keeps identifier 0 in a "
                "node too, and idr_find takes anything else for the entry itself",
                place.word("head" if above is None else "slot"),
            )
            yield index, entry & ~INTERNAL_MASK
            return
        address = entry & ~INTERNAL_MASK
        if address < RESERVED:
            self._disagree(
                f"the entry {entry:#x} is a marker, and no node",
                "NULL or a node: a marker is followed, or tried again for ever",
                place.word("head" if above is None else "slot"),
            )
            return
        if address in self._seen:
            self._disagree(
                f"the node at {address:#x} is met twice",
                "each node in one slot",
                place.word("entry"),
            )
            raise BadData(f"the xarray meets the node at {address:#x} twice")
        self._seen.add(address)
        try:
            node = self._node(address)
        except MemoryNotReadable as error:
            self.missing.append(error)
            return
        shift = node.shift
        fits = shift % self._bits == 0 and shift < 64
        if not fits or (above is not None and shift != above.shift - self._bits):
            self._disagree(
                f"the node at {address:#x} has a shift of {shift}",
                f"a multiple of {self._bits} below 64"
                if above is None
                else f"{above.shift - self._bits}, one level below the node that leads to it",
                place.word("entry"),
                self._word(node, "shift", shift),
            )
            raise BadData(
                f"the xarray node at {address:#x} has a shift of {shift}, which cannot be here"
            )
        self._confirm_node(node, place, above)
        yield from self._children(node, index)

    def _children(self, node: _Node, index: int) -> Iterator[tuple[int, int]]:
        for i in np.flatnonzero(node.slots):
            place = _Place(node.address + self._to_slots + POINTER * int(i), int(node.slots[i]))
            inside = index + (int(i) << node.shift)
            if node.shift:
                yield from self._below(place, inside, node)
                continue
            self._comparison.words += 1
            if place.entry & INTERNAL_MASK:
                self._disagree(
                    f"the entry of identifier {inside} is {place.entry:#x}, which is no pointer",
                    "a pointer with its low bits clear: idr_find returns what the slot holds",
                    place.word("slot"),
                )
            if (place.entry & INTERNAL_MASK) != INTERNAL or place.entry >= RESERVED:
                yield inside, place.entry & ~INTERNAL_MASK

    def _disagree(self, summary: str, expected: str, *words: Word, doubt: str = "") -> None:
        self._comparison.mismatches.append(
            Mismatch(f"the idr at {self._idr:#x}: {summary}", expected, words, doubt)
        )

    def _node(self, address: int) -> _Node:
        """Read a node: whole if it is all there, otherwise its shift and its slots."""
        kernel, layout = self._kernel, self._layout
        order = kernel.profile.byte_order
        (to_shift, _), (to_slots, size) = layout.place("shift"), layout.place("slots")
        try:
            data = kernel.read(address, layout.size)
        except MemoryNotReadable:
            # An older capture has only these two members.
            shift = kernel.unsigned(address + to_shift, 1)
            slots = np.frombuffer(kernel.read(address + to_slots, size), f"{order}u8")
            return _Node(address, shift, slots.astype(np.uint64))

        def member(name: str, width: int | None = None) -> int:
            at, length = layout.place(name)
            return integer(data[at : at + (width or length)], order)

        slots = np.frombuffer(data[to_slots : to_slots + size], f"{order}u8").astype(np.uint64)
        node = _Node(address, data[to_shift], slots)
        if "marks" in layout:
            node = node._replace(
                parent=member("parent"),
                array=member("array"),
                counted=member("count"),
                values=member("nr_values"),
                offset=member("offset"),
                # IDR_FREE is the first mark; a word of it has a bit for each slot.
                free=member("marks", POINTER) & ((1 << slots.size) - 1),
            )
        return node

    def _confirm_node(self, node: _Node, place: _Place, above: _Node | None) -> None:
        """Compare a node's members with the place where it was found and with its slots."""
        if node.parent is None or node.free is None:
            self._comparison.lacks("the nodes of the idr have only their slots in this target")
            return
        before = len(self._comparison.mismatches)
        self._confirm_place(node, place, above)
        self._confirm_contents(node)
        if len(self._comparison.mismatches) == before:
            # The entry that leads here, and in a node of identifiers each entry that it holds.
            self._comparison.confirmed += 1 + (
                int(np.count_nonzero(node.slots)) if not node.shift else 0
            )

    def _word(self, node: _Node, member: str, value: int) -> Word:
        offset, size = self._layout.place(member)
        return Word(f"xa_node.{member}", node.address + offset, value, min(size, POINTER))

    def _confirm_place(self, node: _Node, place: _Place, above: _Node | None) -> None:
        assert node.parent is not None
        parent = above.address if above is not None else 0
        if node.parent != parent:
            self._disagree(
                f"the node at {node.address:#x} has the parent {node.parent:#x}",
                f"{parent:#x}, from where it was reached",
                place.word("entry"),
                self._word(node, "parent", node.parent),
                doubt=HALF_WAY if above is None and self._is_new_head(node.parent, place) else "",
            )
        offset = 0
        if above is not None:
            offset = (place.address - above.address - self._to_slots) // POINTER
        if node.offset != offset:
            self._disagree(
                f"the node at {node.address:#x} says that it is in slot {node.offset}",
                f"slot {offset}, in which it was found",
                place.word("entry"),
                self._word(node, "offset", node.offset),
            )
        if node.array != self._idr:
            self._disagree(
                f"the node at {node.address:#x} belongs to the array at {node.array:#x}",
                f"the array at {self._idr:#x}, in which it was found",
                place.word("entry"),
                self._word(node, "array", node.array),
            )

    def _is_new_head(self, parent: int, head: _Place) -> bool:
        """Say whether a node is a new head that leads to the old one, but is not linked yet.

        ``radix_tree_extend`` sets the old head's parent before it makes the new node the head.
        """
        try:
            return self._kernel.pointer(parent + self._to_slots) == head.entry
        except MemoryNotReadable:
            return False

    def _confirm_contents(self, node: _Node) -> None:
        assert node.free is not None
        filled = sum(1 << int(i) for i in np.flatnonzero(node.slots))
        marks = self._word(node, "marks", node.free)
        count = self._word(node, "count", node.counted)
        if node.values:
            self._disagree(
                f"the node at {node.address:#x} counts {node.values} values",
                "0: an idr of pointers holds no values",
                self._word(node, "nr_values", node.values),
            )
        if node.shift:
            # radix_tree_extend and idr_get_free link a child before they count it.
            children = filled.bit_count()
            if node.counted != children:
                self._disagree(
                    f"the node at {node.address:#x} counts {node.counted} children",
                    f"{children}, as many as its slots hold",
                    count,
                    doubt=HALF_WAY if node.counted == children - 1 else "",
                )
            return
        taken = ~node.free & ((1 << node.slots.size) - 1)
        for i in _bits(filled & node.free):
            self._disagree(
                f"slot {i} of the node at {node.address:#x} holds an entry and is marked free",
                "the mark IDR_FREE clear where there is an entry",
                Word("slot", node.address + self._to_slots + POINTER * i, int(node.slots[i])),
                marks,
            )
        for i in _bits(taken & ~filled):
            self._disagree(
                f"slot {i} of the node at {node.address:#x} is taken and holds nothing",
                "an entry where the mark IDR_FREE is clear",
                Word("slot", node.address + self._to_slots + POINTER * i, 0),
                marks,
                doubt="an identifier is reserved first, and its entry filled in under the lock "
                "afterwards",
            )
        if node.counted != taken.bit_count():
            # idr_alloc counts an identifier before it clears the mark.
            self._disagree(
                f"the node at {node.address:#x} counts {node.counted} identifiers",
                f"{taken.bit_count()}, as many as are marked as taken",
                count,
                marks,
                doubt=HALF_WAY if node.counted == taken.bit_count() + 1 else "",
            )


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
