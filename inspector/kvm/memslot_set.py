"""A set of memslots, as kernels keep it since 5.17 (a54d806688fe).

A set holds its memslots in three containers: a tree by gfn, which translates
L1's addresses; a tree by address in the VM's process, which finds the memslots
to unmap there; and a hash by id, by which user space names them. A VM has two
sets of the same memslots, and each memslot has a node for either set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from inspector.errors import BadData, InspectorError, MemoryNotReadable
from inspector.memory.numbers import addresses, integer
from inspector.structures.rbtree import tree_nodes
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison, Mismatch, Word

__all__ = ["MemslotSet"]

POINTER = 8
SETS = 2
U32 = (1 << 32) - 1
GOLDEN_RATIO = 0x61C8_8647
"""``GOLDEN_RATIO_32``: a number of 32 bits is hashed by its product with it (``hash_32``)."""
CHAIN_LIMIT = 1 << 16
NOT_FOLLOWED = "what it leads to is missing from this target: {}"


class _Range(NamedTuple):
    """An ``interval_tree_node``: its children, first and last address, and last of its subtree."""

    left: int
    right: int
    start: int
    last: int
    subtree_last: int


class MemslotSet:
    """The set in use, at ``address``; ``comparison`` receives where its containers disagree."""

    def __init__(self, kernel: KernelSpace, address: int, comparison: Comparison) -> None:
        self._kernel = kernel
        self._address = address
        self._comparison = comparison
        self._layout = kernel.profile.struct("kvm_memory_slot")
        self._container = kernel.profile.struct("kvm_memslots")
        self._index = kernel.field("kvm_memslots", address, "node_idx")
        """Which of a slot's two nodes belongs to this set."""

    def slots(self) -> Iterator[int]:
        """Yield the memslots of the tree by gfn, then those that only another container has."""
        if self._index >= SETS:
            raise BadData(
                f"the memslots at {self._address:#x} say that they are set {self._index} of two"
            )
        root = self._kernel.field("kvm_memslots", self._address, "gfn_tree.rb_node")
        found: dict[int, None] = {}
        for slot in self._of_tree(root, "gfn_node", self._comparison):
            found[slot] = None
            yield slot
        self._confirm_order(list(found))
        for way, walk in (("the hash by id", self._by_id), ("hva_tree", self._by_address)):
            noted = self._noted()
            slots = walk()
            if slots is None:
                continue
            # A walk that noted something may have missed memslots, so it proves none absent.
            self._compare(way, found, slots, whole=self._noted() == noted)
            others = [slot for slot in slots if slot not in found]
            yield from others
            found |= dict.fromkeys(others)

    def _node_offset(self, member: str) -> int:
        """Return the offset in a memslot of the node of this set."""
        offset, size = self._layout.place(member)
        return offset + self._index * (size // SETS)

    def _of_tree(self, root: int, member: str, comparison: Comparison) -> Iterator[int]:
        offset = self._node_offset(member)
        for node in tree_nodes(self._kernel, root, comparison):
            yield node - offset

    def _disagree(self, summary: str, expected: str, *words: Word, doubt: str = "") -> None:
        self._comparison.mismatches.append(
            Mismatch(f"the memslots at {self._address:#x}: {summary}", expected, words, doubt)
        )

    def _word(self, slot: int, member: str) -> list[Word]:
        """Return a member of a memslot, or nothing if it cannot be read."""
        offset, size = self._layout.place(member)
        try:
            value = self._kernel.unsigned(slot + offset, size)
        except MemoryNotReadable:
            return []
        return [Word(f"memslot at {slot:#x}, {member}", slot + offset, value, size)]

    def _confirm_order(self, found: list[int]) -> None:
        offset = np.uint64(self._layout.offset("base_gfn"))
        gfn, known = self._kernel.words(addresses(found) + offset)
        for row in np.flatnonzero((gfn[:-1] >= gfn[1:]) & known[:-1] & known[1:]):
            pair = found[row], found[row + 1]
            self._disagree(
                f"the tree by gfn has the memslot at gfn {int(gfn[row]):#x} before the one at "
                f"{int(gfn[row + 1]):#x}",
                "memslots in the order of their gfns: the kernel searches from the root",
                *(word for slot in pair for word in self._word(slot, "base_gfn")),
            )

    def _noted(self) -> int:
        return len(self._comparison.mismatches) + len(self._comparison.missing)

    def _compare(self, way: str, found: dict[int, None], others: list[int], *, whole: bool) -> None:
        """Compare the memslots of another container with those found so far.

        ``whole`` says that all memslots of that container were found.
        """
        known = set(others)
        self._comparison.words += len(others)
        self._comparison.confirmed += len(known & found.keys())
        for slot in found:
            if whole and slot not in known:
                self._disagree(
                    f"{way} does not lead to the memslot at {slot:#x}",
                    "the same memslots in both trees and the hash",
                    *self._word(slot, "id"),
                    *self._word(slot, "base_gfn"),
                )
        for slot in others:
            if slot not in found:
                self._disagree(
                    f"only {way} leads to the memslot at {slot:#x}",
                    "the same memslots in both trees and the hash",
                    *self._word(slot, "id"),
                    *self._word(slot, "base_gfn"),
                )

    def _by_id(self) -> list[int] | None:
        """Return the memslots in the hash, None if it cannot be read."""
        if "id_hash" not in self._container or "id_node" not in self._layout:
            self._comparison.lacks("the layout of this kernel was taken without id_hash")
            return None
        offset, size = self._container.place("id_hash")
        first = self._address + offset
        try:
            data = self._kernel.read(first, size)
        except MemoryNotReadable:
            self._comparison.lacks("the memslots' id_hash is missing from this target")
            return None
        heads = np.frombuffer(data, f"{self._kernel.profile.byte_order}u8")
        found: dict[int, None] = {}
        for bucket in np.flatnonzero(heads):
            known = len(found)
            self._chain(first + POINTER * int(bucket), int(heads[bucket]), found)
            for slot in list(found)[known:]:
                self._confirm_bucket(slot, int(bucket), heads.size)
        return list(found)

    def _confirm_bucket(self, slot: int, bucket: int, buckets: int) -> None:
        """Check that a memslot is in the bucket of its id (``hash_min``, ``id_to_memslot``)."""
        for word in self._word(slot, "id"):
            # The id is signed: it is extended to 32 bits, and the top bits of its hash are used.
            sign = word.value >> (8 * word.size - 1)
            number = (word.value - (sign << (8 * word.size))) & U32
            hashed = (number * GOLDEN_RATIO) & U32
            wanted = hashed >> (32 - (buckets.bit_length() - 1))
            if wanted != bucket:
                self._disagree(
                    f"the memslot at {slot:#x} has the id {word.value}, and is in bucket {bucket} "
                    "of the hash by id",
                    f"bucket {wanted}, where the kernel looks for that id",
                    word,
                )

    def _chain(self, place: int, node: int, found: dict[int, None]) -> None:
        """Add the memslots of one bucket; ``pprev`` of each is the address of the link to it."""
        offset = self._node_offset("id_node")
        order = self._kernel.profile.byte_order
        while node:
            if node - offset in found or len(found) >= CHAIN_LIMIT:
                self._disagree(
                    f"the hash by id leads to the memslot at {node - offset:#x} twice",
                    "each memslot in one bucket, once",
                    Word("pointer to it", place, node),
                )
                return
            try:
                data = self._kernel.read(node, 2 * POINTER)
            except InspectorError as error:
                self._disagree(
                    f"the hash by id leads to {node:#x}",
                    "a memslot",
                    Word("pointer", place, node),
                    doubt=NOT_FOLLOWED.format(error),
                )
                return
            found[node - offset] = None
            following, back = (integer(data[at : at + POINTER], order) for at in (0, POINTER))
            if back != place:
                self._disagree(
                    f"the hash by id leads to {node:#x}, which leads back to {back:#x}",
                    f"pprev {place:#x}, where the pointer to it is",
                    Word("pointer", place, node),
                    Word("pprev", node + POINTER, back),
                )
            place, node = node, following

    def _by_address(self) -> list[int] | None:
        """Return the memslots in the tree by address, None if it cannot be read."""
        root = "hva_tree.rb_root.rb_node"
        structs = self._kernel.profile.structs
        if root not in self._container or "interval_tree_node" not in structs:
            self._comparison.lacks("the layout of this kernel was taken without hva_tree")
            return None
        try:
            top = self._kernel.field("kvm_memslots", self._address, root)
        except MemoryNotReadable:
            self._comparison.lacks("the memslots' hva_tree is missing from this target")
            return None
        found: list[int] = []
        try:
            found += self._of_tree(top, "hva_node", self._comparison)
        except (BadData, MemoryNotReadable) as error:
            where = self._address + self._container.offset(root)
            self._disagree(
                f"hva_tree cannot be followed: {error}",
                "a tree",
                Word(root, where, top),
                doubt=NOT_FOLLOWED.format(error) if isinstance(error, MemoryNotReadable) else "",
            )
        self._confirm_ranges(found)
        return found

    def _confirm_ranges(self, slots: list[int]) -> None:
        """Compare the address ranges in the tree with the memslots, and with each other."""
        offset = self._node_offset("hva_node")
        ranges = {slot + offset: self._range(slot + offset) for slot in slots}
        for node, one in ranges.items():
            if one is None:
                continue
            self._confirm_range(node - offset, node, one)
            below = [ranges.get(child) for child in (one.left, one.right)]
            last = max([one.last, *(child.subtree_last for child in below if child)])
            if one.subtree_last != last:
                to_last = self._kernel.profile.struct("interval_tree_node").offset("__subtree_last")
                self._disagree(
                    f"the node of hva_tree at {node:#x} says that nothing below it ends after "
                    f"{one.subtree_last:#x}",
                    f"{last:#x}: the search for an address that is unmapped passes over the rest",
                    Word("__subtree_last", node + to_last, one.subtree_last),
                )

    def _range(self, node: int) -> _Range | None:
        layout = self._kernel.profile.struct("interval_tree_node")
        branches = self._kernel.profile.struct("rb_node")
        try:
            data = self._kernel.read(node, layout.size)
        except MemoryNotReadable:
            return None
        # The rb_node is the first member of an interval_tree_node.
        places = [branches.offset(name) for name in ("rb_left", "rb_right")]
        places += [layout.offset(name) for name in ("start", "last", "__subtree_last")]
        order = self._kernel.profile.byte_order
        return _Range(*(integer(data[at : at + POINTER], order) for at in places))

    def _confirm_range(self, slot: int, node: int, one: _Range) -> None:
        try:
            begin = self._kernel.field("kvm_memory_slot", slot, "userspace_addr")
            pages = self._kernel.field("kvm_memory_slot", slot, "npages")
        except MemoryNotReadable:
            return
        last = begin + (pages << self._kernel.profile.page_shift) - 1
        if (one.start, one.last) != (begin, last):
            layout = self._kernel.profile.struct("interval_tree_node")
            self._disagree(
                f"hva_tree has the memslot at {slot:#x} from {one.start:#x} to {one.last:#x}",
                f"{begin:#x} to {last:#x}, as the memslot says itself",
                Word("start", node + layout.offset("start"), one.start),
                Word("last", node + layout.offset("last"), one.last),
                *self._word(slot, "userspace_addr"),
                *self._word(slot, "npages"),
            )
