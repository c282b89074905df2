"""Read the rmap arrays of a VM and every list they lead to.

Arrays are read in runs of whole pages.  All lists are followed in parallel,
one generation of nodes per read, by their links and never by their words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import encoding
from inspector.errors import MemoryNotReadable
from inspector.kvm.snapshot import ArrayPages, LinkProblem, Memslot, Rmaps
from inspector.memory.arrays import Growing, first_of_each, joined
from inspector.memory.interface import ABSENT, Records, why_missing
from inspector.memory.numbers import U64, addresses
from inspector.memory.reads import RecordingMemory
from inspector.regions import LINEAR_MAP, LINEAR_SIZE, linear_to_physical
from inspector.structures.space import KernelSpace

__all__ = ["NO_RMAPS", "Arrays", "read_arrays", "read_rmaps"]

WORD = 8
READ_LIMIT = 1 << 22
"""Bytes of an array that are read at once, so that they are still in the cache when searched."""
MISSING_LIMIT = 1 << 26
"""After so many bytes in a row are missing, the rest of an array counts as missing too."""
FEW, LONG = 16, 16
"""If at most ``FEW`` lists go on after ``LONG`` generations, their further nodes are guessed."""
LIST_LIMIT = 1 << 20
TOO_LONG = f"it comes after {LIST_LIMIT:,} others, and a list is followed no further"
RUN = 1 << 16
"""Most nodes of a list that are guessed at once."""
PAGE = 1 << 12

_NONE = addresses([])
_NO_INDEX = np.zeros(0, np.int64)
NO_RMAPS = Rmaps(
    memslot=_NO_INDEX,
    gfn=_NONE,
    where=_NONE,
    head=_NONE,
    start=np.zeros(1, np.int64),
    word=_NONE,
    node=_NONE,
    place=_NONE,
)


class Arrays(NamedTuple):
    """The words of rmap arrays that are not zero, whatever they mean: one row per word.

    ``memslot`` is the index of its memslot, ``where`` its kernel address, and
    ``head`` the word.  ``unread`` are gaps ``(first gfn, pages)``, and
    ``pages`` the pages of the arrays that the kernel maps, as far as they
    were looked up.
    """

    memslot: NDArray[np.int64]
    gfn: U64
    where: U64
    head: U64
    unread: list[tuple[int, int]]
    pages: list[ArrayPages]


def read_rmaps(kernel: KernelSpace, memslots: tuple[Memslot, ...]) -> Rmaps:
    """Read every slot of every memslot of a radix guest."""
    memslot, gfn, where, head, unread, pages = read_arrays(kernel, memslots)
    single = encoding.is_single(head) != 0
    slot = np.flatnonzero(~single)
    lists = _lists(kernel, slot, where[slot], head[slot])
    # A slot has one entry if its word is a single, otherwise those of its list.  Slot i has the
    # entries start[i] to start[i + 1].
    length = single.astype(np.int64)
    length += np.bincount(lists.slot, minlength=head.size)
    start = np.zeros(head.size + 1, dtype=np.int64)
    np.cumsum(length, out=start[1:])
    # ``alone`` are slots; ``listed`` are entries, in the order in which ``lists`` has them.
    alone = np.flatnonzero(single)
    listed = np.flatnonzero(np.repeat(~single, length))

    def merged(of_single: U64, of_list: U64) -> U64:
        """Merge a column of slots and a column of list entries into one of all entries."""
        if not slot.size:
            return of_single
        both = np.empty(start[-1], dtype=np.uint64)
        both[start[alone]] = of_single[alone]
        both[listed] = of_list
        return both

    return Rmaps(
        memslot=memslot,
        gfn=gfn,
        where=where,
        head=head,
        start=start,
        word=merged(head, lists.word),
        node=merged(np.zeros(head.size, dtype=np.uint64), lists.node),
        place=merged(where, lists.place),
        problems=tuple(lists.problems),
        unread=tuple(unread),
        pages=tuple(pages),
    )


def read_arrays(kernel: KernelSpace, memslots: tuple[Memslot, ...]) -> Arrays:
    """Return the non-zero words of every memslot's array.

    A damaged memslot can have any number of pages.  So after
    ``MISSING_LIMIT`` missing bytes in a row, the rest of its array is not
    looked for and counts as unread.
    """
    parts = [_array(kernel, number, slot) for number, slot in enumerate(memslots) if slot.rmap]
    if not parts:
        return Arrays(_NO_INDEX, _NONE, _NONE, _NONE, [], [])
    return Arrays(
        joined([part.memslot for part in parts]),
        joined([part.gfn for part in parts]),
        joined([part.where for part in parts]),
        joined([part.head for part in parts]),
        [gap for part in parts for gap in part.unread],
        [pages for part in parts for pages in part.pages],
    )


def _array(kernel: KernelSpace, number: int, slot: Memslot) -> Arrays:
    """Return the non-zero words of one memslot's array."""
    # The array need not begin at a page border: ``first`` is the page in which it begins, and
    # ``skip`` the number of words before it there.  ``lost`` counts in parts from ``first``.
    page = kernel.page_size
    first = slot.rmap - slot.rmap % page
    per_page = page // WORD
    skip = (slot.rmap - first) // WORD
    pages = -(-(slot.rmap % page + slot.npages * WORD) // page)
    found = Growing(slot.npages, np.uint64, np.uint64)
    lost: list[tuple[int, int]] = []
    virtual: list[U64] = []
    physical: list[U64] = []
    parts = page // PAGE
    step = max(1, READ_LIMIT // page)
    missing = 0
    for begin in range(0, pages, step):
        if missing >= MISSING_LIMIT:
            lost.append((begin * parts, pages * parts))
            break
        count = min(step, pages - begin)
        where = addresses(first) + np.arange(begin, begin + count, dtype=np.uint64) * np.uint64(
            page
        )
        frames, known = kernel.translate(where)
        virtual.append(where[known])
        physical.append(frames[known])
        records, read = _in_parts(kernel, where, page)
        words = records.words(kernel.profile.byte_order).reshape(-1)
        # The index in the array of the first word that was read, negative in the first page.
        before = begin * per_page - skip
        part = words[max(0, -before) : slot.npages - before]
        index = np.flatnonzero(part)
        found.append((index + max(0, before)).astype(np.uint64), part[index])
        missing = 0 if read.any() else missing + count * page
        lost += [(begin * parts + low, begin * parts + high) for low, high in _runs(~read)]
    position, head = found.columns
    where = position * np.uint64(WORD)
    where += addresses(slot.rmap)
    position += addresses(slot.base_gfn)
    unread = _gaps(slot, skip, lost)
    memslot = np.broadcast_to(np.int64(number), head.shape)
    pages_read = ArrayPages(number, joined(virtual), joined(physical)) if virtual else None
    return Arrays(memslot, position, where, head, unread, [pages_read] if pages_read else [])


def _runs(rows: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where each run of true rows begins and ends."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], rows, [False]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _gaps(slot: Memslot, skip: int, lost: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the gaps ``(first gfn, pages)`` that missing parts of an array make."""
    gaps: list[tuple[int, int]] = []
    per_part = PAGE // WORD
    for begin, end in lost:
        low = slot.base_gfn + max(0, begin * per_part - skip)
        high = slot.base_gfn + min(slot.npages, end * per_part - skip)
        if high <= low:
            continue
        if gaps and sum(gaps[-1]) == low:
            low = gaps.pop()[0]
        gaps.append((low, high - low))
    return gaps


def _in_parts(kernel: KernelSpace, where: U64, page: int) -> tuple[Records, NDArray[np.bool_]]:
    """Read pages, incomplete ones in parts of ``PAGE`` bytes, and say which parts were read."""
    records = kernel.read_many(where, page)
    parts = page // PAGE
    read = np.repeat(records.present, parts)
    lost = np.flatnonzero(~records.present)
    if lost.size and parts > 1:
        steps = np.arange(parts, dtype=np.uint64) * np.uint64(PAGE)
        pieces = kernel.read_many((where[lost, None] + steps).reshape(-1), PAGE)
        records.data[lost] = pieces.data.reshape(lost.size, page)
        read.reshape(-1, parts)[lost] = pieces.present.reshape(-1, parts)
    return records, read


class _Entries(NamedTuple):
    """Entries of lists, one row each; ``node`` is 0 for one that is in a link itself."""

    word: U64
    node: U64
    place: U64
    slot: NDArray[np.int64]
    problems: list[LinkProblem]


def _lists(kernel: KernelSpace, slot: NDArray[np.int64], where: U64, head: U64) -> _Entries:
    """Follow every slot that is given; return the entries grouped by slot, in list order."""
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

    # One row per list that is still followed: its slot, the link to follow and where that was
    # read, Brent's anchor, and the nodes so far.  Rows are always dropped from all five arrays.
    link = head
    place = where
    anchor = np.zeros(head.size, dtype=np.uint64)
    depth = np.zeros(head.size, dtype=np.int64)
    generation = 0
    while slot.size:
        ended = link == 0
        stop(slot[ended], "end", place[ended], link[ended])
        # The link of the last node is the oldest entry itself.
        single = encoding.is_single(link) != 0
        words.append(link[single])
        nodes.append(np.zeros(int(single.sum()), dtype=np.uint64))
        places.append(place[single])
        slots.append(slot[single])
        on = ~ended & ~single
        slot, link, place, anchor, depth = slot[on], link[on], place[on], anchor[on], depth[on]

        long = depth >= LIST_LIMIT
        for row in np.flatnonzero(long):
            problem = int(slot[row]), "unreadable", int(place[row]), int(link[row]), TOO_LONG
            problems.append(LinkProblem(*problem))
        on = ~long
        slot, link, place, anchor, depth = slot[on], link[on], place[on], anchor[on], depth[on]
        bad = ~_can_be_node(link)
        stop(slot[bad], "pointer", place[bad], link[bad])
        cycle = ~bad & (link == anchor)
        stop(slot[cycle], "cycle", place[cycle], link[cycle])
        on = ~bad & ~cycle
        slot, link, place, anchor, depth = slot[on], link[on], place[on], anchor[on], depth[on]
        # Brent's algorithm: a list that runs in a circle meets its anchor again.  The anchor
        # moves at every power of two, so some anchor is in the circle long enough to be met.
        if (generation & (generation - 1)) == 0:
            anchor = link.copy()
        generation += 1

        # The nodes to read, and for each the row of its list; rows of one list are adjacent.
        node, owner = link, np.arange(slot.size)
        if slot.size <= FEW and generation > LONG:
            node, owner = _guessed(kernel, link, next_column)
        records = kernel.read_many(node, layout.size)
        rows = records.words(kernel.profile.byte_order)
        good = records.present
        # A guessed node counts only if the node before it, as it is read here, leads to it.
        if node.size > link.size:
            good = _unbroken(good, owner, rows[:, next_column] == np.append(node[1:], 0))
        first = np.searchsorted(owner, np.arange(slot.size))
        lost = ~good[first]
        for row in np.flatnonzero(lost):
            why = why_missing(kernel, int(link[row]), layout.size)
            kind = "nowhere" if why == ABSENT else "unreadable"
            problems.append(LinkProblem(int(slot[row]), kind, int(place[row]), int(link[row]), why))
        words.append(rows[good, word_column])
        nodes.append(node[good])
        places.append(node[good] + np.uint64(word_offset))
        slots.append(slot[owner[good]])
        count = np.bincount(owner[good], minlength=slot.size)
        # Each list is followed on from the last of its nodes that count.
        last = (first + count - 1)[~lost]
        slot, anchor, depth = slot[~lost], anchor[~lost], (depth + count)[~lost]
        link = rows[last, next_column]
        place = node[last] + np.uint64(next_offset)
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


def _guessed(kernel: KernelSpace, link: U64, column: int) -> tuple[U64, NDArray[np.int64]]:
    """Guess the nodes that follow some links, from the pages in which they lie.

    A long list would need one read per node, but nodes that were allocated
    one after the other lie side by side in memory.  The pages are not part of
    the inspected memory and are not recorded: they only say where to read.

    Returns:
        The nodes, list by list in list order, the linked one first; and for
        each node the index of the link that leads to its list.
    """
    memory = kernel.memory
    if isinstance(memory, RecordingMemory):
        memory = memory.unrecorded
    pages: dict[int, list[int]] = {}

    def links_of(page: int) -> list[int]:
        """Return the words of a page that can be links, and 0 for the others."""
        try:
            data = memory.read(linear_to_physical(page), PAGE)
        except MemoryNotReadable:
            return []
        words = np.frombuffer(data, dtype=kernel.profile.byte_order + "u8").astype(np.uint64)
        links: list[int] = np.where(_can_be_node(words), words, np.uint64(0)).tolist()
        return links

    nodes: list[int] = []
    owner: list[int] = []
    for index, begin in enumerate(link.tolist()):
        place: int = begin
        seen: dict[int, None] = {}
        while place and place not in seen and len(seen) < RUN:
            seen[place] = None
            inside = place % PAGE
            links = pages.get(place - inside)
            if links is None:
                links = pages[place - inside] = links_of(place - inside)
            at = inside // WORD + column
            place = links[at] if at < len(links) else 0
        nodes += seen
        owner += [index] * len(seen)
    return addresses(nodes), np.array(owner, dtype=np.int64)


def _can_be_node(link: U64) -> NDArray[np.bool_]:
    """Say which links are addresses of the linear map, aligned as nodes are."""
    # Unsigned: an address below the linear map wraps to a large number.
    linear = link - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
    fits: NDArray[np.bool_] = linear & (link % np.uint64(encoding.NODE_ALIGNMENT) == 0)
    return fits


def _unbroken(
    present: NDArray[np.bool_], owner: NDArray[np.int64], leads_on: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Say which rows were read and follow only such rows of their owner, each by its link."""
    # ``leads_on`` says that a row's link leads to the next row.  The first row of an owner needs
    # no link.  A row counts if its owner has no bad row up to it, so bad rows are counted.
    good = present.copy()
    same = owner[1:] == owner[:-1]
    good[1:] &= leads_on[:-1] | ~same
    broken = np.cumsum(~good)
    first = np.searchsorted(owner, owner)
    before: NDArray[np.int64] = broken[first] - ~good[first]
    unbroken: NDArray[np.bool_] = broken == before
    return unbroken


def _without_repeats(entries: _Entries) -> _Entries:
    """Keep only the first round of a list that runs in a circle."""
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
