"""The numbers behind the pictures of a report, counted from a snapshot.

All are of one VM.  Counts of entries add up to those of ``inspector check``:
a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.checks.verdict import Judgement
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Vm
from inspector.structures.radix import LeafTable

__all__ = ["Figures", "GuestFigures", "LongList", "Occupancy", "figures_of"]

BINS = 96
"""Largest number of columns; the number of pages in a column is a power of two."""
LONGEST = 10
SLOT_SIZE = 8
"""Bytes of an element of ``kvm_memory_slot.arch.rmap``."""


class GuestFigures(NamedTuple):
    """The entries of one L1 LPID; ``present`` tells whether L0 has such a nested guest."""

    lpid: int
    present: bool
    live: int
    stale: int
    not_known: int
    shadow_leaves: int


class LongList(NamedTuple):
    """One of the longest lists."""

    gfn: int
    entries: int
    live: int
    guests: int


@dataclass(frozen=True)
class Occupancy:
    """Which parts of L1's address space are mapped through to which L2.

    ``first`` and ``step`` give the gfns of the columns; ``pages[i, j]`` is
    the number of slots in column *j* with a live entry of guest ``lpids[i]``.
    ``memslots`` has ``(first gfn, pages)``.
    """

    first: int
    step: int
    lpids: tuple[int, ...]
    pages: NDArray[np.int64]
    memslots: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is drawn of one VM.

    ``lengths`` maps a number of entries to the number of slots that have that
    many.  ``page_sizes`` gives for each table the number of leaves by size.
    ``array_bytes`` is the size of the rmap arrays.
    """

    lpid: int
    lengths: dict[int, int]
    guests: tuple[GuestFigures, ...]
    longest: tuple[LongList, ...]
    page_sizes: dict[str, dict[str, int]]
    array_bytes: int
    occupancy: Occupancy | None


def figures_of(judgement: Judgement) -> tuple[Figures, ...]:
    """Count every radix VM of a snapshot that was judged."""
    return tuple(_figures(checked) for checked in judgement.joins.vms if checked.vm.radix)


def _figures(checked: CheckedVm) -> Figures:
    vm, rmaps = checked.vm, checked.rmaps
    lengths, counts = np.unique(rmaps.length, return_counts=True)
    return Figures(
        lpid=vm.lpid,
        lengths=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
        guests=tuple(_guests(checked)),
        longest=tuple(_longest(checked)),
        page_sizes={
            "L0's table": _sizes([vm.host]),
            "shadow tables": _sizes([nested.shadow for nested in vm.nested]),
            "L1's tables": _sizes([one.l1 for one in vm.nested if one.l1 is not None]),
        },
        array_bytes=sum(slot.npages for slot in vm.memslots) * SLOT_SIZE,
        occupancy=_occupancy(checked),
    )


def _guests(checked: CheckedVm) -> list[GuestFigures]:
    nested = {one.lpid: one for one in checked.vm.nested}
    lpids = np.union1d(checked.lpid, np.array(sorted(nested), dtype=np.uint64))
    live, unknown = checked.live & ~checked.unknown, checked.unknown
    found = []
    for lpid in lpids.tolist():
        mine = checked.lpid == lpid
        is_live, not_known = (int(np.count_nonzero(mine & kind)) for kind in (live, unknown))
        found.append(
            GuestFigures(
                lpid,
                lpid in nested,
                is_live,
                int(np.count_nonzero(mine)) - is_live - not_known,
                not_known,
                len(nested[lpid].shadow) if lpid in nested else 0,
            )
        )
    return found


def _longest(checked: CheckedVm) -> list[LongList]:
    rmaps = checked.rmaps
    order = np.argsort(-rmaps.length, kind="stable")[:LONGEST]
    found = []
    for slot in order.tolist():
        part = slice(int(rmaps.start[slot]), int(rmaps.start[slot + 1]))
        if part.stop - part.start > 1:
            found.append(
                LongList(
                    int(rmaps.gfn[slot]),
                    part.stop - part.start,
                    int(np.count_nonzero(checked.live[part])),
                    len(np.unique(checked.lpid[part])),
                )
            )
    return found


def _sizes(tables: list[LeafTable]) -> dict[str, int]:
    shifts = np.concatenate([np.zeros(0, np.uint8), *(table.shift for table in tables)])
    sizes, counts = np.unique(shifts, return_counts=True)
    return {pte.size_name(int(size)): int(count) for size, count in zip(sizes, counts, strict=True)}


def _occupancy(checked: CheckedVm) -> Occupancy | None:
    vm = checked.vm
    rows = np.flatnonzero(checked.live)
    if not vm.memslots or not rows.size:
        return None
    first, end = _extent(vm)
    step = 1 << max(0, -(-(end - first) // BINS) - 1).bit_length()
    gfn = checked.rmaps.gfn[checked.slot_of[rows]]
    # the pairs (LPID, gfn) of live entries, each once
    pairs = np.unique(np.stack((checked.lpid[rows], gfn)), axis=1)
    lpids, row = np.unique(pairs[0], return_inverse=True)
    columns = (pairs[1].astype(np.int64) - first) // step
    pages = np.zeros((lpids.size, -(-(end - first) // step)), dtype=np.int64)
    inside = (columns >= 0) & (columns < pages.shape[1])
    # many pairs fall into one cell: add.at counts each of them, ``+=`` would count one
    np.add.at(pages, (row.reshape(-1)[inside], columns[inside]), 1)
    return Occupancy(
        first,
        step,
        tuple(lpids.tolist()),
        pages,
        tuple((slot.base_gfn, slot.npages) for slot in vm.memslots),
    )


def _extent(vm: Vm) -> tuple[int, int]:
    """Return the first gfn of all memslots, and the gfn after the last one."""
    return (
        min(slot.base_gfn for slot in vm.memslots),
        max(slot.base_gfn + slot.npages for slot in vm.memslots),
    )
