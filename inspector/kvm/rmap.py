"""Read the rmap arrays of a VM and every list they lead to.

Arrays are read as whole runs of pages.  Lists are followed all at once, one
generation of nodes per read, by their links and never by their values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import encoding
from inspector.kvm.snapshot import LinkProblem, Memslot, Rmaps
from inspector.memory.arrays import first_of_each
from inspector.memory.base import U64, addresses
from inspector.regions import LINEAR_MAP, LINEAR_SIZE
from inspector.structures.space import KernelSpace

__all__ = ["NO_RMAPS", "Arrays", "read_arrays", "read_rmaps"]

WORD = 8
READ_LIMIT = 1 << 24

_NONE = addresses([])
_NO_INDEX = np.zeros(0, np.int64)
NO_RMAPS = Rmaps(_NO_INDEX, _NONE, _NONE, _NONE, np.zeros(1, np.int64), _NONE, _NONE, _NONE)


class Arrays(NamedTuple):
    """The words of rmap arrays that are not zero, whatever they mean.

    Per word: the index of its memslot, its gfn, its kernel address, and
    itself.  ``unread`` are gaps ``(first gfn, pages)``.
    """

    memslot: NDArray[np.int64]
    gfn: U64
    where: U64
    head: U64
    unread: list[tuple[int, int]]


def read_rmaps(kernel: KernelSpace, memslots: tuple[Memslot, ...]) -> Rmaps:
    """Read every slot of every memslot of a radix guest."""
    memslot, gfn, where, head, unread = read_arrays(kernel, memslots)
    word, node, place, slot, problems = _lists(kernel, where, head)
    start = np.concatenate(([0], np.cumsum(np.bincount(slot, minlength=gfn.size))))
    return Rmaps(
        memslot,
        gfn,
        where,
        head,
        start.astype(np.int64),
        word,
        node,
        place,
        tuple(problems),
        tuple(unread),
    )


def read_arrays(kernel: KernelSpace, memslots: tuple[Memslot, ...]) -> Arrays:
    """Return the non-zero words of every memslot's array."""
    parts = [_array(kernel, index, slot) for index, slot in enumerate(memslots) if slot.rmap]
    if not parts:
        return Arrays(_NO_INDEX, _NONE, _NONE, _NONE, [])
    return Arrays(
        np.concatenate([part.memslot for part in parts]),
        np.concatenate([part.gfn for part in parts]),
        np.concatenate([part.where for part in parts]),
        np.concatenate([part.head for part in parts]),
        [gap for part in parts for gap in part.unread],
    )


def _array(kernel: KernelSpace, index: int, slot: Memslot) -> Arrays:
    """Return the non-zero words of one memslot's array."""
    page = kernel.page_size
    first = slot.rmap - slot.rmap % page
    skip = (slot.rmap - first) // WORD
    pages = -(-(slot.rmap % page + slot.npages * WORD) // page)
    found: list[tuple[U64, U64]] = []
    unread: list[tuple[int, int]] = []
    step = max(1, READ_LIMIT // page)
    for begin in range(0, pages, step):
        count = min(step, pages - begin)
        where = addresses(first) + np.arange(begin, begin + count, dtype=np.uint64) * np.uint64(
            page
        )
        records = kernel.read_many(where, page)
        words = records.words(kernel.profile.byte_order).reshape(-1)
        position = np.flatnonzero(words) + begin * (page // WORD)
        kept = (position >= skip) & (position < skip + slot.npages)
        found.append(
            ((position[kept] - skip).astype(np.uint64), words[np.flatnonzero(words)[kept]])
        )
        for lost in np.flatnonzero(~records.present):
            low = max(0, (begin + int(lost)) * (page // WORD) - skip)
            high = min(slot.npages, (begin + int(lost) + 1) * (page // WORD) - skip)
            if unread and sum(unread[-1]) == slot.base_gfn + low:
                unread[-1] = (unread[-1][0], slot.base_gfn + high - unread[-1][0])
            else:
                unread.append((slot.base_gfn + low, high - low))
    position64 = np.concatenate([part[0] for part in found]) if found else _NONE
    head = np.concatenate([part[1] for part in found]) if found else _NONE
    return Arrays(
        np.full(head.size, index, dtype=np.int64),
        addresses(slot.base_gfn) + position64,
        addresses(slot.rmap) + position64 * np.uint64(WORD),
        head,
        unread,
    )


class _Entries(NamedTuple):
    word: U64
    node: U64
    place: U64
    slot: NDArray[np.int64]
    problems: list[LinkProblem]


def _lists(kernel: KernelSpace, where: U64, head: U64) -> _Entries:
    """Follow every slot; return its entries grouped by slot, in list order."""
    layout = kernel.profile.struct("rmap_nested")
    next_offset, word_offset = layout.offset("list.next"), layout.offset("rmap")
    next_column, word_column = next_offset // WORD, word_offset // WORD
    words: list[U64] = []
    nodes: list[U64] = []
    places: list[U64] = []
    slots: list[NDArray[np.int64]] = []
    problems: list[LinkProblem] = []

    def stop(rows: NDArray[np.int64], kind: str, place: U64, link: U64) -> None:
        problems.extend(
            LinkProblem(int(s), kind, int(p), int(v))
            for s, p, v in zip(rows, place, link, strict=True)
        )

    slot = np.arange(head.size, dtype=np.int64)
    link = head
    place = where
    anchor = np.zeros(head.size, dtype=np.uint64)
    generation = 0
    while slot.size:
        ended = link == 0
        stop(slot[ended], "end", place[ended], link[ended])
        single = encoding.is_single(link) != 0
        words.append(link[single])
        nodes.append(np.zeros(int(single.sum()), dtype=np.uint64))
        places.append(place[single])
        slots.append(slot[single])
        on = ~ended & ~single
        slot, link, place, anchor = slot[on], link[on], place[on], anchor[on]

        linear = link - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
        bad = ~linear | (link % np.uint64(encoding.NODE_ALIGNMENT) != 0)
        stop(slot[bad], "pointer", place[bad], link[bad])
        cycle = ~bad & (link == anchor)
        stop(slot[cycle], "cycle", place[cycle], link[cycle])
        on = ~bad & ~cycle
        slot, link, place, anchor = slot[on], link[on], place[on], anchor[on]
        # Brent's algorithm: a list that runs in a circle meets its anchor again.
        if generation & generation - 1 == 0:
            anchor = link.copy()
        generation += 1

        records = kernel.read_many(link, layout.size)
        lost = ~records.present
        stop(slot[lost], "unreadable", place[lost], link[lost])
        slot, node, anchor = slot[~lost], link[~lost], anchor[~lost]
        rows = records.words(kernel.profile.byte_order)[~lost]
        words.append(rows[:, word_column])
        nodes.append(node)
        places.append(node + np.uint64(word_offset))
        slots.append(slot)
        link = rows[:, next_column]
        place = node + np.uint64(next_offset)
    if not words:
        return _Entries(_NONE, _NONE, _NONE, _NO_INDEX, problems)
    owner = np.concatenate(slots)
    order = np.argsort(owner, kind="stable")
    entries = _Entries(
        np.concatenate(words)[order],
        np.concatenate(nodes)[order],
        np.concatenate(places)[order],
        owner[order],
        problems,
    )
    return _without_repeats(entries)


def _without_repeats(entries: _Entries) -> _Entries:
    """Drop the further rounds that were read of a list that runs in a circle."""
    circular = {problem.slot for problem in entries.problems if problem.kind == "cycle"}
    if not circular:
        return entries
    keep = np.ones(entries.slot.size, dtype=np.bool_)
    for slot in circular:
        rows = np.flatnonzero(entries.slot == slot)
        first = np.zeros(rows.size, dtype=np.bool_)
        first[first_of_each(entries.node[rows])] = True
        keep[rows] = first
    return _Entries(
        entries.word[keep],
        entries.node[keep],
        entries.place[keep],
        entries.slot[keep],
        entries.problems,
    )
