"""What shadow leaves have beyond the leaves they are made of (``model.rights``), over arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.kvm.snapshot import Nested
from inspector.memory.base import U64
from inspector.model.rights import L1State

if TYPE_CHECKING:
    from inspector.checks.view import CheckedVm

__all__ = ["L1_STATES", "Rights", "rights_of"]

L1_STATES = tuple(L1State)
"""States in the order of the codes in ``Rights.l1_state``."""

_AGREES, _UNKNOWN, _UNMAPPED, _ELSEWHERE, _LARGER, _WIDER = range(len(L1_STATES))
PERMISSIONS = np.uint64(pte.PERMISSIONS)
RECORDED = np.uint64(pte.RECORDED)
ATTRIBUTES = np.uint64(pte.ATTRIBUTES)
NONE = np.uint64(0)


@dataclass(frozen=True)
class Rights:
    """Per shadow leaf of a nested guest, what it has beyond what it is made of.

    All of it is nothing for a leaf that is not covered; ``l1_state`` is then
    the code of ``UNKNOWN``.
    """

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


def rights_of(checked: CheckedVm, nested: Nested) -> Rights:
    """Compare every covered shadow leaf of a nested guest with L0's leaves and L1's."""
    shadow, host = nested.shadow, checked.vm.host
    entries = checked.covering(nested)
    leaf, source = checked.shadow_leaf[entries], checked.host_leaf[entries]
    covered = np.zeros(len(shadow), dtype=np.bool_)
    covered[leaf] = True

    largest = np.where(covered, np.uint8(0), shadow.shift)
    bits = np.where(covered, NONE, shadow.entry)
    alike = ~covered
    if leaf.size:
        np.maximum.at(largest, leaf, host.shift[source])
        np.bitwise_or.at(bits, leaf, host.entry[source])
        same = (shadow.entry[leaf] ^ host.entry[source]) & ATTRIBUTES == 0
        alike[leaf[same]] = True
    l1_state, l1_recorded = _ask_l1(checked, nested, covered)
    return Rights(
        shadow.shift > largest,
        shadow.entry & ~bits & PERMISSIONS,
        ~alike,
        shadow.entry & ~bits & RECORDED,
        l1_state,
        l1_recorded,
    )


def _ask_l1(
    checked: CheckedVm, nested: Nested, covered: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], U64]:
    """Compare the covered leaves with L1's table.

    Where a part of L1's table or of L0's could not be read, what it does not
    map is not known.
    """
    shadow, host, l1 = nested.shadow, checked.vm.host, nested.l1
    state = np.full(len(shadow), _UNKNOWN, dtype=np.int8)
    recorded = np.zeros(len(shadow), dtype=np.uint64)
    if l1 is None:
        return state, recorded
    rows = np.flatnonzero(covered)
    address, entry = shadow.address[rows], shadow.entry[rows]
    of_l1 = l1.find(address)
    known = of_l1 >= 0
    if not l1.has_holes:
        state[rows[~known]] = _UNMAPPED
    if not known.all():
        rows, address, entry, of_l1 = (a[known] for a in (rows, address, entry, of_l1))
    if not rows.size:
        return state, recorded
    l1_real = l1.translate(of_l1, address)
    behind = host.find(l1_real)
    behind_l1 = l1.entry[of_l1]
    agrees = np.full(rows.size, _AGREES, dtype=np.int8)
    agrees[entry & ~behind_l1 & PERMISSIONS != 0] = _WIDER
    agrees[shadow.shift[rows] > l1.shift[of_l1]] = _LARGER
    if len(host):
        frame = entry & shadow.frame_mask(rows)
        agrees[host.translate(behind, l1_real) != frame] = _ELSEWHERE
    agrees[behind < 0] = _UNKNOWN if host.has_holes else _ELSEWHERE
    state[rows] = agrees
    recorded[rows] = np.where(agrees == _AGREES, entry & ~behind_l1 & RECORDED, NONE)
    return state, recorded
