"""Compare shadow leaves with the leaves they are made of: ``model.rights`` over arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.kvm.snapshot import Nested, Vm
from inspector.memory.arrays import blocks
from inspector.memory.numbers import U64
from inspector.model.rights import L1State
from inspector.structures.radix import LeafTable

__all__ = ["L1_STATES", "Rights", "rights_of"]

L1_STATES = tuple(L1State)
"""States in the order of the codes in ``Rights.l1_state``."""

_AGREES, _UNKNOWN, _UNMAPPED, _ELSEWHERE, _LARGER, _WIDER = range(len(L1_STATES))
PERMISSIONS = np.uint64(pte.PERMISSIONS)
RECORDED = np.uint64(pte.RECORDED)
ATTRIBUTES = np.uint64(pte.ATTRIBUTES)
NONE = np.uint64(0)


@dataclass(frozen=True, kw_only=True)
class Rights:
    """What each shadow leaf of a nested guest has beyond the leaves it is made of.

    The arrays are parallel, with one row for each leaf of ``nested.shadow``.
    ``covered`` marks the leaves that a reachable, live entry leads to.  For
    the other leaves the rest is zero or False, and ``l1_state`` is the code
    of ``UNKNOWN``.  ``larger`` marks the leaves that are larger than every
    leaf of L0 that they can be made of, ``attributes`` those that agree with
    none of these in the attribute bits.  ``permissions`` and ``recorded`` are
    the bits that none of these leaves has; ``l1_recorded`` are those that
    L1's leaf does not have.
    """

    covered: NDArray[np.bool_]
    larger: NDArray[np.bool_]
    permissions: U64
    attributes: NDArray[np.bool_]
    recorded: U64
    l1_state: NDArray[np.int8]
    l1_recorded: U64

    @property
    def l1_differs(self) -> NDArray[np.bool_]:
        """Which leaves are not as L1's table now wants them."""
        differs: NDArray[np.bool_] = (self.l1_state != _AGREES) & (self.l1_state != _UNKNOWN)
        return differs


class Joined(Protocol):
    """A VM whose entries are joined to L0's leaves and to shadow leaves (``view.CheckedVm``)."""

    @property
    def vm(self) -> Vm:
        """The VM."""

    def covering(self, nested: Nested) -> NDArray[np.int64]:
        """Return the rows of the entries that lead to a shadow leaf of a nested guest."""

    def shadow_leaf(self, nested: Nested, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of the shadow leaf that each of these entries leads to."""

    def host_leaf(self, entries: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of L0's leaf under the slot of each of these entries."""


def rights_of(joined: Joined, nested: Nested) -> Rights:
    """Compare every covered shadow leaf of a nested guest with L0's leaves and L1's."""
    shadow, host = nested.shadow, joined.vm.host
    covered, alike = np.zeros((2, len(shadow)), dtype=np.bool_)
    largest = np.zeros(len(shadow), dtype=np.uint8)
    bits = np.zeros(len(shadow), dtype=np.uint64)
    entries = joined.covering(nested)
    # Several entries can lead to one shadow leaf, through different leaves of L0.  ufunc.at takes
    # every one of them into account; indexed assignment would keep only the last.
    for part in blocks(entries.size):
        leaf = joined.shadow_leaf(nested, entries[part])
        source = joined.host_leaf(entries[part])
        covered[leaf] = True
        np.maximum.at(largest, leaf, host.shift[source])
        np.bitwise_or.at(bits, leaf, host.entry[source])
        same = ((shadow.entry[leaf] ^ host.entry[source]) & ATTRIBUTES) == 0
        alike[leaf[same]] = True
    l1_state, l1_recorded = _ask_l1(joined, nested, covered)
    beyond = np.where(covered, shadow.entry & ~bits, NONE)
    return Rights(
        covered=covered,
        larger=covered & (shadow.shift > largest),
        permissions=beyond & PERMISSIONS,
        attributes=covered & ~alike,
        recorded=beyond & RECORDED,
        l1_state=l1_state,
        l1_recorded=l1_recorded,
    )


def _ask_l1(
    joined: Joined, nested: Nested, covered: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], U64]:
    """Compare the covered leaves with L1's table."""
    state = np.full(covered.size, _UNKNOWN, dtype=np.int8)
    recorded = np.zeros(covered.size, dtype=np.uint64)
    if nested.l1 is not None:
        leaves = np.flatnonzero(covered)
        for part in blocks(leaves.size):
            rows = leaves[part]
            state[rows], recorded[rows] = _asked(joined.vm.host, nested.shadow, nested.l1, rows)
    return state, recorded


def _asked(
    host: LeafTable, shadow: LeafTable, l1: LeafTable, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int8], U64]:
    """Compare some leaves with L1's table.

    If a part of L1's table or of L0's could not be read, an address that the
    table does not map is not known.
    """
    address, entry = shadow.address[rows], shadow.entry[rows]
    of_l1 = l1.find(address)
    unmapped = _UNKNOWN if l1.has_holes else _UNMAPPED
    if not len(l1):
        return np.full(rows.size, unmapped, np.int8), np.zeros(rows.size, np.uint64)
    # Where find() returns -1 the rows below hold values of the last leaf.  Each assignment to state
    # overrides the earlier ones, and the last two replace these values.
    l1_real = l1.translate(of_l1, address)
    behind = host.find(l1_real)
    beyond = entry & ~l1.entry[of_l1]
    state = np.full(rows.size, _AGREES, dtype=np.int8)
    state[(beyond & PERMISSIONS) != 0] = _WIDER
    state[shadow.shift[rows] > l1.shift[of_l1]] = _LARGER
    if len(host):
        frame = entry & shadow.frame_mask(rows)
        state[host.translate(behind, l1_real) != frame] = _ELSEWHERE
    state[behind < 0] = _UNKNOWN if host.has_holes else _ELSEWHERE
    state[of_l1 < 0] = unmapped
    return state, np.where(state == _AGREES, beyond & RECORDED, NONE)
