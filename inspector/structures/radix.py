"""Radix trees: the kernel's own, L0's for a guest, the shadow ones, and L1's.

One walker reads them all.  It applies the rules of the hardware and of
``kvmppc_mmu_walk_radix_tree`` (arch/powerpc/kvm/book3s_64_mmu_radix.c): an
entry that leads to a table holds the width of that table's index, a table is
aligned to its size, the frame of a leaf to the size of its page, and only
certain widths exist.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.memory.arrays import Growing, distinct, first_of_each, is_in, joined
from inspector.memory.interface import ABSENT, AddressSpace, Records, why_missing
from inspector.memory.numbers import U64, addresses
from inspector.structures.dense import DenseMap

__all__ = ["LeafTable", "TableArrays", "TableProblem", "Translated", "collect_leaves", "translate"]

VALID = np.uint64(pte.VALID)
LEAF = np.uint64(pte.LEAF)
NEXT = np.uint64(pte.NEXT_TABLE_MASK)
BITS = np.uint64(pte.NEXT_BITS_MASK)
RPN = np.uint64(pte.RPN_MASK)
ONE = np.uint64(1)
ADDRESS_MASK = np.uint64((1 << pte.TREE_BITS) - 1)
NO_ADDRESS = np.uint64((1 << 62) - (1 << pte.TREE_BITS))
"""The bits between an address and the number of its quadrant, which have to be zero."""
MOST_ODD = 64
"""Most entries, neither valid nor zero, that are reported from the tables of one read."""
READ_LIMIT = 1 << 21
"""Bytes of tables that are read and decoded at once, so that they stay in the cache."""
MANY = 1 << 12
"""Number of addresses in one lookup for which a map of the table is made."""
PART = 1 << 12
"""Bytes of the parts in which an incomplete table is read."""

_SIZES = ONE << np.arange(64, dtype=np.uint64)
_FRAMES = RPN & ~(_SIZES - ONE)
"""Size and frame mask of a leaf by log2 of its page size."""


@dataclass(frozen=True)
class TableProblem:
    """A part of a tree that could not be followed.

    ``address`` is the first address that the part would translate.  ``where``
    is the address of the wrong entry, of the root if the root is wrong, or of
    the bytes that are missing, and ``entry`` the wrong entry.  ``missing``
    says that bytes were not readable, rather than readable and wrong.
    """

    address: int
    where: int
    text: str
    missing: bool = False
    entry: int | None = None


class TableArrays(NamedTuple):
    """The tables of a tree, the root first: one row per table.

    ``table``: its address.  ``base``: the first address it translates.
    ``bits``: log2 of its entries.  ``above``: the address of the entry that
    leads to it, and ``entry`` that entry; both are 0 for the root.
    """

    table: U64
    base: U64
    bits: U64
    above: U64
    entry: U64

    @classmethod
    def none(cls) -> TableArrays:
        """Return no tables."""
        nothing = addresses([])
        return cls(nothing, nothing, nothing, nothing, nothing)

    def kept(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> TableArrays:
        """Return some of the tables."""
        return TableArrays(*(column[rows] for column in self))

    @property
    def size(self) -> U64:
        """Size of each table in bytes."""
        return np.uint64(8) << self.bits


@dataclass(frozen=True)
class LeafTable:
    """The leaves of a tree in address order: one row per leaf.

    ``address``: the first address that it translates.  ``entry``: the
    page-table entry in host order.  ``shift``: log2 of the page size in bytes.
    ``where``: the address at which the entry was read (physical; for L1's
    table L1-real).
    """

    address: U64
    entry: U64
    shift: NDArray[np.uint8]
    where: U64
    problems: tuple[TableProblem, ...] = ()
    tables: TableArrays = field(default_factory=TableArrays.none)

    @classmethod
    def empty(cls, problems: tuple[TableProblem, ...] = ()) -> LeafTable:
        """Return a table without leaves."""
        none = addresses([])
        return cls(none, none, np.zeros(0, np.uint8), none, problems)

    def __len__(self) -> int:
        return len(self.address)

    @property
    def has_holes(self) -> bool:
        """Whether a part of the tree could not be read, so that it may have more leaves."""
        return any(problem.missing for problem in self.problems)

    @property
    def size(self) -> U64:
        """Page size of each leaf in bytes."""
        return _SIZES[self.shift]

    @property
    def frame(self) -> U64:
        """Physical address each leaf maps its first byte to."""
        return self.entry & _FRAMES[self.shift]

    def frame_mask(self, index: NDArray[np.int64]) -> U64:
        """Return, for each of some leaves, the mask of the entry's bits that are the frame."""
        return _FRAMES[self.shift[index]]

    def translate(self, index: NDArray[np.int64], where: U64) -> U64:
        """Return the physical addresses to which leaves map addresses, one address per leaf."""
        inside = _SIZES[self.shift[index]] - ONE
        frame: U64 = self.entry[index] & RPN & ~inside
        return frame | (where & inside)

    @cached_property
    def _dense(self) -> DenseMap | None:
        return DenseMap.of(self.address, self.shift)

    def find(self, where: U64) -> NDArray[np.int64]:
        """Return the index of the leaf that translates each address, or -1."""
        if not len(self):
            return np.full(len(where), -1, dtype=np.int64)
        if where.size >= MANY and self._dense is not None:
            return self._dense.find(where)
        # The last leaf that begins at or below each address.  Below the first leaf that is -1,
        # which indexes some leaf until the last line.
        index = np.searchsorted(self.address, where, side="right").astype(np.int64) - 1
        inside = where - self.address[index]
        index[inside >= _SIZES[self.shift[index]]] = -1
        index[where < self.address[0]] = -1
        return index


class Translated(NamedTuple):
    """Physical addresses of a lookup, and which of them are known.

    ``unread`` is the address of the page-table entry that could not be read,
    where that is why an address is not known, and 0 elsewhere.
    """

    physical: U64
    known: NDArray[np.bool_]
    unread: U64


def translate(memory: AddressSpace, root: pte.Root, where: U64) -> Translated:
    """Translate single addresses; only the entries on their way are read.

    An address has 52 bits.  The ten bits above them have to be zero.  The top
    two bits are the quadrant, which selects the tree and is not translated.
    """
    target = where & ADDRESS_MASK
    physical = np.zeros(where.size, dtype=np.uint64)
    known = np.zeros(where.size, dtype=np.bool_)
    unread = np.zeros(where.size, dtype=np.uint64)
    # One row per address that is still on its way down: its index in ``where``, the next table,
    # the width of that table's index, and log2 of the bytes that the table translates.
    rows = np.flatnonzero((where & NO_ADDRESS) == 0)
    table = np.full(rows.size, root.table, dtype=np.uint64)
    bits = np.full(rows.size, root.bits, dtype=np.uint64)
    shift = np.full(rows.size, pte.TREE_BITS, dtype=np.uint64)
    for widths in pte.SUPPORTED_BITS:
        fits = _one_of(bits, widths)
        rows, table, bits, shift = rows[fits], table[fits], bits[fits], shift[fits] - bits[fits]
        if not rows.size:
            break
        index: U64 = (target[rows] >> shift) & ((ONE << bits) - ONE)
        place: U64 = table + index * np.uint64(8)
        # Many addresses have an entry in common: each entry is read once, and ``back`` is the
        # row of the answer for each address.
        once = distinct(place)
        back = np.searchsorted(once, place)
        records = memory.read_many(once, 8)
        entry = records.words(pte.BYTE_ORDER).reshape(-1)[back]
        present = records.present[back]
        unread[rows[~present]] = place[~present]
        valid = present & ((entry & VALID) != 0)
        leaf = valid & ((entry & LEAF) != 0)
        inside = (ONE << shift) - ONE
        physical[rows[leaf]] = ((entry & RPN & ~inside) | (target[rows] & inside))[leaf]
        known[rows[leaf]] = True
        on = valid & ~leaf
        rows, shift = rows[on], shift[on]
        table, bits = entry[on] & NEXT, entry[on] & BITS
    return Translated(physical, known, unread)


def collect_leaves(
    space: AddressSpace, root: pte.Root, own: tuple[tuple[int, ...], ...] = pte.SUPPORTED_BITS
) -> LeafTable:
    """Collect every leaf of a tree, level by level, all tables of a level at once.

    A table that is met a second time is not walked again, so a damaged tree
    costs no more than the memory it lies in.

    Args:
        space: the address space that holds the tables.
        root: the first table.
        own: the index widths that KVM uses at each level of a tree that it builds, the root
            first. A table of another width that the hardware knows is walked, but reported as a
            problem. So is an entry that is neither valid nor zero, because KVM takes it for a
            mapped page (``kvmppc_unmap_free_pte``).
    """
    leaves: list[tuple[U64, U64, NDArray[np.uint8], U64]] = []
    problems: list[TableProblem] = []
    found = TableArrays(*(addresses([value]) for value in (root.table, 0, root.bits, 0, 0)))
    shift = np.full(1, pte.TREE_BITS, dtype=np.uint64)
    walked: list[TableArrays] = []
    seen = addresses([])
    last = len(pte.SUPPORTED_BITS) - 1
    for level, widths in enumerate(pte.SUPPORTED_BITS):
        usable = _usable(found, widths, own[level], seen, problems)
        tables, shift = found.kept(usable), shift[usable]
        walked.append(tables)
        seen = np.concatenate((seen, tables.table))
        following: list[tuple[TableArrays, U64]] = []
        # Tables of one form are read together: they have one width, and translate equally many
        # bytes, so their entries translate pages of one size.
        form_of = (shift << np.uint64(8)) | tables.bits
        for one in distinct(form_of):
            rows = np.flatnonzero(form_of == one)
            width = int(one) & 0xFF
            page_shift = (int(one) >> 8) - width
            step = max(1, READ_LIMIT // (8 << width))
            kept = Growing(rows.size << width, np.uint64, np.uint64, np.uint64)
            for begin in range(0, rows.size, step):
                part = rows[begin : begin + step]
                read = _table_entries(
                    space,
                    tables.table[part],
                    tables.base[part],
                    width,
                    page_shift,
                    cleared=own is not pte.SUPPORTED_BITS,
                )
                # One row per valid entry: the address it translates, the entry, and its place.
                address, entry, where = read.entries
                problems += read.problems
                is_leaf = (entry & LEAF) != 0
                wrong = np.zeros(entry.size, dtype=np.bool_)
                if level == 0:
                    wrong = is_leaf
                if level == last:
                    wrong = ~is_leaf
                wrong |= is_leaf & ((entry & RPN & (_SIZES[page_shift] - ONE)) != 0)
                for i in np.flatnonzero(wrong):
                    problems.append(_bad_entry(level, address[i], entry[i], where[i]))
                on = np.flatnonzero(~is_leaf & ~wrong)
                if on.size:
                    onward = entry[on]
                    below = TableArrays(
                        onward & NEXT, address[on], onward & BITS, where[on], onward
                    )
                    following.append((below, np.full(on.size, page_shift, dtype=np.uint64)))
                if on.size or wrong.any():
                    good = np.flatnonzero(is_leaf & ~wrong)
                    address, entry, where = address[good], entry[good], where[good]
                kept.append(address, entry, where)
            address, entry, where = kept.columns
            leaves.append((address, entry, np.full(entry.size, page_shift, np.uint8), where))
        if not following:
            break
        found = TableArrays(*map(joined, zip(*(below for below, _ in following), strict=True)))
        shift = joined([shifts for _, shifts in following])
    every = TableArrays(*map(joined, zip(*walked, strict=True)))
    if not leaves:
        return LeafTable.empty(tuple(problems))
    address, entry, small, where = (joined(column) for column in zip(*leaves, strict=True))
    # Leaves were collected by level and by form, so they may be out of order.
    if np.any(address[1:] < address[:-1]):
        order = np.argsort(address, kind="stable")
        address, entry, small, where = address[order], entry[order], small[order], where[order]
    return LeafTable(address, entry, small, where, tuple(problems), every)


class _Entries(NamedTuple):
    entries: tuple[U64, U64, U64]
    problems: list[TableProblem]


def _table_entries(
    space: AddressSpace, table: U64, base: U64, width: int, page_shift: int, *, cleared: bool
) -> _Entries:
    """Return address, entry and place of every valid entry of some tables of one form.

    If all other entries have to be ``cleared``, one that is not zero is a problem.
    """
    # One row per table and one column per entry, then flattened.
    records, problems = _tables(space, table, base, width, page_shift)
    words = records.words(pte.BYTE_ORDER)
    column = np.arange(1 << width, dtype=np.uint64)
    address = base[:, None] + (column << np.uint64(page_shift))
    where = table[:, None] + column * np.uint64(8)
    address, words, where = address.reshape(-1), words.reshape(-1), where.reshape(-1)
    valid = (words & VALID) != 0
    if not valid.all():
        if cleared and np.count_nonzero(words) != np.count_nonzero(valid):
            odd = np.flatnonzero(~valid & (words != 0))
            problems += [_odd_entry(address[i], words[i], where[i]) for i in odd[:MOST_ODD]]
        kept = np.flatnonzero(valid)
        address, words, where = address[kept], words[kept], where[kept]
    return _Entries((address, words, where), problems)


def _tables(
    space: AddressSpace, table: U64, base: U64, width: int, page_shift: int
) -> tuple[Records, list[TableProblem]]:
    """Read tables of one form; an incomplete one is read in parts, and missing parts are zero."""
    length = 8 << width
    records = space.read_many(table, length)
    problems = []
    count = max(1, length // PART)
    part = length // count
    for row in np.flatnonzero(~records.present):
        pieces = addresses(table[row]) + np.arange(count, dtype=np.uint64) * np.uint64(part)
        data, present = space.read_many(pieces, part)
        records.data[row] = data.reshape(-1)
        name = f"page table at {space.name} address {int(table[row]):#x}"
        # A table of which nothing is there is one problem, otherwise each missing part is one.
        for lost in [0] if not present.any() else np.flatnonzero(~present).tolist():
            where = int(pieces[lost])
            size = part
            text = f"{part} bytes at {where:#x} of the {name} are not readable"
            if not present.any():
                text, size = f"{name} is not readable", length
            entries = (int(lost) * (part // 8)) << page_shift
            problems.append(
                TableProblem(
                    int(base[row]) + entries, where, text + _because(space, where, size), True
                )
            )
    return records, problems


def _because(space: AddressSpace, address: int, length: int) -> str:
    why = why_missing(space, address, length)
    return "" if why == ABSENT else f": {why}"


def _usable(
    tables: TableArrays,
    widths: tuple[int, ...],
    own: tuple[int, ...],
    seen: U64,
    problems: list[TableProblem],
) -> NDArray[np.bool_]:
    """Say which tables can be walked: of a width of the level, aligned, and not met before."""
    width_ok = _one_of(tables.bits, widths)
    expected = _one_of(tables.bits, own)
    aligned = (tables.table & (tables.size - ONE)) == 0
    fresh = np.zeros(tables.table.size, dtype=np.bool_)
    fresh[first_of_each(tables.table)] = True
    fresh &= ~is_in(tables.table, seen)
    usable: NDArray[np.bool_] = width_ok & aligned & fresh
    for i in np.flatnonzero(~(usable & expected)):
        table, above = int(tables.table[i]), int(tables.above[i])
        if not width_ok[i]:
            text = f"index width {int(tables.bits[i])} is not possible here"
        elif not expected[i]:
            text = f"index width {int(tables.bits[i])}, where this kernel uses {own[0]}"
        elif not aligned[i]:
            text = f"table address {table:#x} is not aligned to the table's size"
        else:
            text = f"table {table:#x} is reached twice"
        problems.append(
            TableProblem(
                int(tables.base[i]),
                above or table,
                text,
                entry=int(tables.entry[i]) if above else None,
            )
        )
    return usable


def _one_of(bits: U64, widths: tuple[int, ...]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.logical_or.reduce([bits == width for width in widths])
    return found


def _odd_entry(address: np.uint64, entry: np.uint64, where: np.uint64) -> TableProblem:
    text = f"an entry that is not valid and not zero (entry {int(entry):#018x})"
    return TableProblem(int(address), int(where), text, entry=int(entry))


def _bad_entry(level: int, address: np.uint64, entry: np.uint64, where: np.uint64) -> TableProblem:
    if level == 0:
        text = "a leaf of 512 GiB is not possible"
    elif not int(entry) & pte.LEAF:
        text = "a valid entry of the last level is not a leaf"
    else:
        text = "the leaf's frame is not aligned to its size"
    text = f"{text} (entry {int(entry):#018x})"
    return TableProblem(int(address), int(where), text, entry=int(entry))
