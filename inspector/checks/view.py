"""The joins that the invariants share, computed once per VM.

The rules are the model's (``inspector.model.vm``), evaluated over arrays; a
leaf or an entry that looks wrong is then put before the model itself, which
sees the VM through ``ModelView``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import encoding
from inspector.kvm.snapshot import Nested, Rmaps, Vm
from inspector.memory.base import U64
from inspector.model.vm import EntryPlace, EntryState, Leaf, LeafJudgement, judge_leaf
from inspector.structures.radix import LeafTable

__all__ = ["STATES", "CheckedVm", "ModelView", "Suspect", "leaf_at"]

STATES = tuple(EntryState)
"""Entry states in the order of the codes in ``CheckedVm.state``."""

_LIVE, _NO_GUEST, _NO_LEAF, _MOVED, _NO_HOST_PAGE = range(len(STATES))
ONE = np.uint64(1)


class Suspect(NamedTuple):
    """A shadow leaf that L0 would not find again, and the model's word on it."""

    nested: Nested
    row: int
    leaf: Leaf
    judgement: LeafJudgement


class CheckedVm:
    """A VM with every rmap entry joined to L0's leaf and to its shadow leaf."""

    def __init__(self, vm: Vm, page_shift: int) -> None:
        self.vm = vm
        self.page_shift = page_shift

    @property
    def rmaps(self) -> Rmaps:
        """The VM's rmap slots."""
        return self.vm.rmaps

    @cached_property
    def lpid(self) -> U64:
        """L1 LPID of each entry."""
        return encoding.lpid_of(self.rmaps.word)

    @cached_property
    def gpa(self) -> U64:
        """L2 address of each entry."""
        return encoding.gpa_of(self.rmaps.word)

    @cached_property
    def slot_of(self) -> NDArray[np.int64]:
        """Slot of each entry."""
        return self.rmaps.slot

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """Which entries the kernel's own walk meets (see ``model.slot.kernel_walk``)."""
        zero = np.flatnonzero(self.rmaps.word == 0)
        reachable = np.ones(self.rmaps.word.size, dtype=np.bool_)
        for position in zero[::-1]:
            reachable[position : self.rmaps.start[self.slot_of[position] + 1]] = False
        return reachable

    @cached_property
    def host_leaf(self) -> NDArray[np.int64]:
        """Index of L0's leaf for the slot of each entry, -1 where it has none."""
        per_slot = self.vm.host.find(self.rmaps.gfn << np.uint64(self.page_shift))
        return per_slot[self.slot_of]

    @cached_property
    def shadow_leaf(self) -> NDArray[np.int64]:
        """Index of the shadow leaf of each entry in its guest's table, -1 where it has none."""
        found = np.full(self.rmaps.word.size, -1, dtype=np.int64)
        for nested in self.vm.nested:
            rows = np.flatnonzero(self.lpid == nested.lpid)
            found[rows] = nested.shadow.find(self.gpa[rows])
        return found

    @cached_property
    def state(self) -> NDArray[np.int8]:
        """What each entry leads to, as an index into ``STATES``."""
        state = np.full(self.rmaps.word.size, _NO_GUEST, dtype=np.int8)
        host = self.vm.host
        for nested in self.vm.nested:
            rows = np.flatnonzero(self.lpid == nested.lpid)
            leaf, backing = self.shadow_leaf[rows], self.host_leaf[rows]
            state[rows] = _NO_LEAF
            state[rows[(leaf >= 0) & (backing < 0)]] = _NO_HOST_PAGE
            both = (leaf >= 0) & (backing >= 0)
            rows, leaf, backing = rows[both], leaf[both], backing[both]
            if rows.size:
                inside = host.size[backing] - ONE
                same = nested.shadow.frame[leaf] & ~inside == host.frame[backing]
                state[rows] = np.where(same, _LIVE, _MOVED)
        return state

    @cached_property
    def unknown(self) -> NDArray[np.bool_]:
        """Which entries may lead to what could not be read, so that their state is not known."""
        vm = self.vm
        unknown: NDArray[np.bool_] = (self.state == _NO_HOST_PAGE) & _has_holes(vm.host)
        no_guest = self.state == _NO_GUEST
        if vm.unread_guests is None:
            unknown |= no_guest
        else:
            unknown |= no_guest & np.isin(self.lpid, vm.unread_guests)
        for nested in vm.nested:
            if _has_holes(nested.shadow):
                unknown |= (self.state == _NO_LEAF) & (self.lpid == nested.lpid)
        return unknown

    def covered(self, nested: Nested) -> NDArray[np.bool_]:
        """Tell which shadow leaves of a nested guest a reachable, live entry leads to."""
        covered = np.zeros(len(nested.shadow), dtype=np.bool_)
        live = (self.state == _LIVE) & self.reachable & (self.lpid == nested.lpid)
        covered[self.shadow_leaf[live]] = True
        return covered

    def pending(self, nested: Nested) -> int:
        """Count the covered leaves that L1's table no longer leads to.

        Legal: L1 has changed its table and not yet invalidated.  Where a part
        of L1's table could not be read, what it does not map is not known.
        """
        if nested.l1 is None or not len(nested.shadow):
            return 0
        rows = np.flatnonzero(self.covered(nested))
        address = nested.shadow.address[rows]
        l1 = nested.l1.find(address)
        mapped = l1 >= 0
        waiting = 0 if _has_holes(nested.l1) else int(np.count_nonzero(~mapped))
        rows, address, l1 = rows[mapped], address[mapped], l1[mapped]
        if not rows.size:
            return waiting
        l1_real = nested.l1.frame[l1] + (address - nested.l1.address[l1])
        host = self.vm.host.find(l1_real)
        waiting += 0 if _has_holes(self.vm.host) else int(np.count_nonzero(host < 0))
        rows, l1_real, host = rows[host >= 0], l1_real[host >= 0], host[host >= 0]
        if not rows.size:
            return waiting
        frame = self.vm.host.frame[host] + (l1_real - self.vm.host.address[host])
        return waiting + int(np.count_nonzero(frame != nested.shadow.frame[rows]))

    @cached_property
    def suspects(self) -> tuple[Suspect, ...]:
        """Every shadow leaf that no live entry leads to, with the model's word on it."""
        return tuple(
            Suspect(nested, int(index), leaf, judge_leaf(self.model, nested.lpid, leaf))
            for nested in self.vm.nested
            for index in np.flatnonzero(~self.covered(nested))
            for leaf in [leaf_at(nested.shadow, int(index))]
        )

    @cached_property
    def model(self) -> ModelView:
        """The VM as the model sees it."""
        return ModelView(self)


def _has_holes(table: LeafTable) -> bool:
    return any(problem.missing for problem in table.problems)


def leaf_at(table: LeafTable, index: int) -> Leaf:
    """Return one leaf of a table as the model takes it."""
    return Leaf(int(table.address[index]), int(table.entry[index]), int(table.shift[index]))


class _Asked:
    """A table of arrays, answering the model's questions."""

    def __init__(self, table: LeafTable) -> None:
        self._table = table

    def at(self, address: int) -> Leaf | None:
        """Return the leaf that translates an address."""
        index = int(self._table.find(np.array([address], dtype=np.uint64))[0])
        return leaf_at(self._table, index) if index >= 0 else None

    def onto(self, frame: int) -> Sequence[Leaf]:
        """Return the leaves whose host page holds a physical address."""
        inside = np.uint64(frame) - self._table.frame
        return [leaf_at(self._table, int(i)) for i in np.flatnonzero(inside < self._table.size)]


class ModelView:
    """A snapshot's VM in the form the model asks for."""

    def __init__(self, checked: CheckedVm) -> None:
        self._checked = checked
        self.page_shift = checked.page_shift
        self.host = _Asked(checked.vm.host)
        self._nested = {nested.lpid: nested for nested in checked.vm.nested}

    def shadow(self, lpid: int) -> _Asked | None:
        """Return the shadow table of a nested guest."""
        nested = self._nested.get(lpid)
        return _Asked(nested.shadow) if nested else None

    def l1_table(self, lpid: int) -> _Asked | None:
        """Return L1's own table for a nested guest."""
        nested = self._nested.get(lpid)
        return _Asked(nested.l1) if nested and nested.l1 is not None else None

    def entries_for(self, lpid: int, leaf: Leaf) -> list[EntryPlace]:
        """Return every rmap entry whose LPID and L2 address lie in a shadow leaf."""
        checked = self._checked
        inside = checked.gpa - np.uint64(leaf.address) < np.uint64(leaf.size)
        rows = np.flatnonzero((checked.lpid == lpid) & inside)
        return [
            EntryPlace(
                int(checked.rmaps.gfn[checked.slot_of[row]]),
                int(row - checked.rmaps.start[checked.slot_of[row]]),
                int(checked.rmaps.word[row]),
                bool(checked.reachable[row]),
            )
            for row in rows
        ]
