"""The joins that the invariants share, computed once per VM.

The rules are the model's (``inspector.model.vm``), evaluated over arrays.  A
leaf or an entry that looks wrong is then judged by the model itself, which
sees the VM through ``ModelView``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import encoding
from inspector.checks.known import KnownMemory
from inspector.checks.rights import Rights, rights_of
from inspector.kvm.snapshot import Nested, Rmaps, Snapshot, Vm
from inspector.memory.arrays import blocks, is_in
from inspector.memory.numbers import U64, addresses
from inspector.model.vm import EntryPlace, EntryState, Leaf, LeafJudgement, judge_leaf
from inspector.structures.radix import LeafTable

__all__ = ["STATES", "CheckedHost", "CheckedVm", "ModelView", "Suspect", "leaf_at"]

STATES = tuple(EntryState)
"""Entry states in the order of the codes in ``CheckedVm.state``."""

_LIVE, _NO_GUEST, _NO_LEAF, _MOVED, _NO_HOST_PAGE = range(len(STATES))
ONE = np.uint64(1)


class Suspect(NamedTuple):
    """A shadow leaf that looks wrong, and the model's judgement of it."""

    nested: Nested
    row: int
    leaf: Leaf
    judgement: LeafJudgement


class CheckedHost:
    """A snapshot, with the data that invariants across VMs share."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @cached_property
    def known(self) -> KnownMemory:
        """The memory that is known to hold the host's own data."""
        return KnownMemory(self.snapshot)

    @cached_property
    def vms(self) -> tuple[CheckedVm, ...]:
        """Every VM with its joins, in the snapshot's order."""
        return tuple(
            CheckedVm(
                vm,
                self.snapshot.page_shift,
                tuple(other for other in self.snapshot.vms if other is not vm),
                self,
            )
            for vm in self.snapshot.vms
        )


class CheckedVm:
    """A VM with every rmap entry joined to L0's leaf and to its shadow leaf.

    ``others`` are the other VMs of the host.  ``whole`` is the host, None if
    the VM is examined by itself.
    """

    def __init__(
        self,
        vm: Vm,
        page_shift: int,
        others: tuple[Vm, ...] = (),
        whole: CheckedHost | None = None,
    ) -> None:
        self.vm = vm
        self.page_shift = page_shift
        self.others = others
        self.whole = whole

    @property
    def tables(self) -> list[tuple[str, LeafTable]]:
        """The tables that L0 built, each with its name; L0's own table for the VM comes first."""
        return [("L0's table", self.vm.host)] + [
            (f"shadow table of L2 {nested.lpid}", nested.shadow) for nested in self.vm.nested
        ]

    @property
    def rmaps(self) -> Rmaps:
        """The VM's rmap slots."""
        return self.vm.rmaps

    @cached_property
    def lpid(self) -> NDArray[np.uint16]:
        """L1 LPID of each entry."""
        lpid = np.empty(self.rmaps.word.size, dtype=np.uint16)
        for part in blocks(lpid.size):
            lpid[part] = encoding.lpid_of(self.rmaps.word[part])
        return lpid

    @cached_property
    def gpa(self) -> U64:
        """L2 address of each entry."""
        return encoding.gpa_of(self.rmaps.word)

    @cached_property
    def slot_of(self) -> NDArray[np.int64]:
        """Index of each entry's slot."""
        return self.rmaps.slot

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """Which entries the kernel's own walk meets (see ``model.slot.kernel_walk``)."""
        zero = np.flatnonzero(self.rmaps.word == 0)
        reachable = np.ones(self.rmaps.word.size, dtype=np.bool_)
        # The walk ends at a zero word: the rest of the slot is not met.
        for position in zero[::-1]:
            reachable[position : self.rmaps.start[self.slot_of[position] + 1]] = False
        return reachable

    @cached_property
    def _leaf_of_slot(self) -> NDArray[np.int64]:
        """Index of L0's leaf for each slot, -1 if there is none."""
        return self.vm.host.find(self.rmaps.gfn << np.uint64(self.page_shift))

    def host_leaf(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of L0's leaf for the slot of each of these entries, -1 if none."""
        return self._leaf_of_slot[self.slot_of[rows]]

    @cached_property
    def _by_lpid(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The entries ordered by LPID, and the position at which each LPID begins among them."""
        count = np.bincount(self.lpid, minlength=encoding.MAX_LPID + 1)
        # a stable sort of 16-bit numbers is a radix sort in NumPy: linear, without comparisons
        return np.argsort(self.lpid, kind="stable"), np.append(0, np.cumsum(count))

    def entries_of(self, nested: Nested) -> NDArray[np.int64]:
        """Return the entries with a nested guest's LPID."""
        if nested.lpid > encoding.MAX_LPID:
            return np.zeros(0, dtype=np.int64)
        order, begin = self._by_lpid
        return order[begin[nested.lpid] : begin[nested.lpid + 1]]

    def shadow_leaf(self, nested: Nested, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index of the shadow leaf that each of these entries names, -1 for none."""
        return nested.shadow.find(encoding.gpa_of(self.rmaps.word[rows]))

    @cached_property
    def state(self) -> NDArray[np.int8]:
        """What each entry leads to, as an index into ``STATES``."""
        state = np.full(self.rmaps.word.size, _NO_GUEST, dtype=np.int8)
        for nested in self.vm.nested:
            entries = self.entries_of(nested)
            for part in blocks(entries.size):
                state[entries[part]] = self._state_of(nested, entries[part])
        return state

    def _state_of(self, nested: Nested, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        shadow, host = nested.shadow, self.vm.host
        leaf, backing = self.shadow_leaf(nested, rows), self.host_leaf(rows)
        state = np.where(leaf < 0, np.int8(_NO_LEAF), np.int8(_NO_HOST_PAGE))
        if len(shadow) and len(host):
            # An index of -1 reads the last leaf; ``both`` drops these rows again.
            frame = shadow.entry[leaf] & shadow.frame_mask(leaf)
            same = ((frame ^ host.entry[backing]) & host.frame_mask(backing)) == 0
            both = (leaf >= 0) & (backing >= 0)
            state[both] = np.where(same, np.int8(_LIVE), np.int8(_MOVED))[both]
        return state

    @cached_property
    def unknown(self) -> NDArray[np.bool_]:
        """Which entries may lead to something that could not be read: their state is not known."""
        vm = self.vm
        unknown: NDArray[np.bool_] = (self.state == _NO_HOST_PAGE) & vm.host.has_holes
        no_guest = self.state == _NO_GUEST
        if vm.unread_guests is None:
            unknown |= no_guest
        else:
            unknown |= no_guest & is_in(self.lpid, addresses(vm.unread_guests))
        for nested in vm.nested:
            if nested.shadow.has_holes:
                rows = self.entries_of(nested)
                unknown[rows] |= self.state[rows] == _NO_LEAF
        return unknown

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which entries lead to a shadow leaf that maps into the slot's host page."""
        live: NDArray[np.bool_] = self.state == _LIVE
        return live

    @cached_property
    def misplaced(self) -> NDArray[np.bool_]:
        """Which live entries are not in the slot of their host leaf's first page."""
        leaf = self._leaf_of_slot
        if not len(self.vm.host):
            return self.live
        first = self.vm.host.address[leaf] >> np.uint64(self.page_shift)
        later = (first < self.rmaps.gfn) & (leaf >= 0)
        if not later.any():
            return np.zeros(self.state.size, dtype=np.bool_)
        misplaced: NDArray[np.bool_] = self.live & later[self.slot_of]
        return misplaced

    @cached_property
    def in_memslot(self) -> NDArray[np.bool_]:
        """Which of L0's leaves lie entirely in one memslot."""
        host, shift = self.vm.host, self.page_shift
        found = np.zeros(len(host), dtype=np.bool_)
        for slot in self.vm.memslots:
            begin, end = slot.base_gfn << shift, (slot.base_gfn + slot.npages) << shift
            low, high = np.searchsorted(host.address, addresses([begin, end]))
            # leaves are in address order and do not overlap: only the last can reach beyond the end
            if high > low and int(host.address[high - 1]) + (1 << int(host.shift[high - 1])) > end:
                high -= 1
            found[low:high] = True
        return found

    def covering(self, nested: Nested) -> NDArray[np.int64]:
        """Return the entries through which L0 finds the leaves of a nested guest."""
        rows = self.entries_of(nested)
        return rows[self.live[rows] & self.reachable[rows]]

    @cached_property
    def rights(self) -> tuple[Rights, ...]:
        """For each nested guest, its leaves compared with the leaves they are made of."""
        return tuple(rights_of(self, nested) for nested in self.vm.nested)

    @property
    def pending(self) -> int:
        """Number of covered leaves that are not as L1's table now wants them.

        This is legal: L1 may have changed its table and not yet invalidated.
        """
        return sum(int(np.count_nonzero(rights.l1_differs)) for rights in self.rights)

    def suspect(self, nested: Nested, row: int) -> Suspect:
        """Return a shadow leaf with the model's judgement of it."""
        leaf = leaf_at(nested.shadow, row)
        return Suspect(nested, row, leaf, judge_leaf(self.model, nested.lpid, leaf))

    @cached_property
    def suspects(self) -> tuple[Suspect, ...]:
        """Every shadow leaf that is not covered, with the model's judgement of it."""
        return tuple(
            self.suspect(nested, int(row))
            for nested, rights in zip(self.vm.nested, self.rights, strict=True)
            for row in np.flatnonzero(~rights.covered)
        )

    @cached_property
    def model(self) -> ModelView:
        """The VM as the model sees it."""
        return ModelView(self)


def leaf_at(table: LeafTable, index: int) -> Leaf:
    """Return one leaf of a table in the model's form."""
    return Leaf(int(table.address[index]), int(table.entry[index]), int(table.shift[index]))


class _Asked:
    """A ``LeafTable`` behind the interface that the model uses."""

    def __init__(self, table: LeafTable) -> None:
        self._table = table

    def at(self, address: int) -> Leaf | None:
        """Return the leaf that translates an address."""
        index = int(self._table.find(np.array([address], dtype=np.uint64))[0])
        return leaf_at(self._table, index) if index >= 0 else None

    def onto(self, frame: int) -> Sequence[Leaf]:
        """Return the leaves whose host page holds a physical address."""
        # unsigned: below a leaf the difference wraps round, and is larger than any leaf
        inside = np.uint64(frame) - self._table.frame
        return [leaf_at(self._table, int(i)) for i in np.flatnonzero(inside < self._table.size)]


class ModelView:
    """A VM of a snapshot behind the interface that the model uses."""

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
        # unsigned: below the leaf the difference wraps round, and is larger than any leaf
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
