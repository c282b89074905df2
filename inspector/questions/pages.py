"""The pages of one VM, found by any of their addresses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.checks.findings import Finding
from inspector.checks.view import STATES, CheckedVm, leaf_at
from inspector.kvm.snapshot import Memslot, Nested
from inspector.memory.numbers import addresses
from inspector.model.vm import EntryState, judge_leaf
from inspector.questions.parts import L1Page, L2Page, Mapping, Mark, RmapEntry, SlotView, TableEntry
from inspector.structures.radix import LeafTable

__all__ = ["Pages"]

SMALLEST_SHIFT = 12
"""log2 of the smallest L2 page in bytes, which is what an rmap entry names."""

WORD = 8
UNKNOWN = "what it may lead to could not be read"
BEHIND_ZERO = "not met by the kernel's walk, which ends at a zero word before it"


class Pages:
    """A VM, and the findings about its pages.

    Args:
        checked: the VM.
        findings: the findings of ``inspector check`` about it.
    """

    def __init__(self, checked: CheckedVm, findings: tuple[Finding, ...]) -> None:
        self.checked = checked
        self.vm = checked.vm
        self.shift = checked.page_shift
        self._named: dict[tuple[str, int], list[Finding]] = {}
        for finding in findings:
            for item in finding.evidence:
                self._named.setdefault((item.space, item.address), []).append(finding)

    @cached_property
    def nested(self) -> dict[int, Nested]:
        """The nested guests by L1 LPID."""
        return {nested.lpid: nested for nested in self.vm.nested}

    def named(self, space: str, address: int) -> tuple[Finding, ...]:
        """Return the findings that name an address."""
        return tuple(dict.fromkeys(self._named.get((space, address), ())))

    def entry(self, row: int) -> RmapEntry:
        """Return an rmap entry by its index in the VM's arrays."""
        checked, rmaps = self.checked, self.checked.rmaps
        slot = int(checked.slot_of[row])
        place = int(rmaps.place[row])
        state = STATES[int(checked.state[row])]
        findings = self.named("kernel", place)
        if checked.unknown[row]:
            mark, why = Mark.UNKNOWN, UNKNOWN
        elif state is EntryState.LIVE:
            mark, why = Mark.LIVE, ""
        else:
            mark, why = Mark.STALE, state.value
        reasons = [f"{mark.value}: {why}" if why else mark.value] if findings else [why]
        reasons += [finding.invariant for finding in findings]
        if not checked.reachable[row]:
            reasons.append(BEHIND_ZERO)
        return RmapEntry(
            int(rmaps.gfn[slot]),
            row - int(rmaps.start[slot]),
            int(rmaps.word[row]),
            int(rmaps.node[row]),
            place,
            Mark.SUSPICIOUS if findings else mark,
            "; ".join(reason for reason in reasons if reason),
        )

    def entries_of(self, lpid: int, address: int, size: int) -> Iterator[RmapEntry]:
        """Yield every entry that names a part of an L2 page."""
        # unsigned: below the page the difference wraps round, and is larger than any page
        inside = self.checked.gpa - np.uint64(address) < np.uint64(size)
        for row in np.flatnonzero((self.checked.lpid == lpid) & inside):
            yield self.entry(int(row))

    def slot(self, gfn: int) -> SlotView | None:
        """Return the slot of a gfn, empty or not; None if no memslot has it or it was not read."""
        rmaps = self.vm.rmaps
        found = np.flatnonzero(rmaps.gfn == np.uint64(gfn))
        if found.size:
            index = int(found[0])
            where = int(rmaps.where[index])
            rows = range(int(rmaps.start[index]), int(rmaps.start[index + 1]))
            entries = tuple(self.entry(row) for row in rows)
            return SlotView(
                gfn, where, int(rmaps.head[index]), entries, self.named("kernel", where)
            )
        memslot = self.memslot(gfn)
        unread = any(first <= gfn < first + pages for first, pages in rmaps.unread)
        if memslot is None or not memslot.rmap or unread:
            return None
        where = memslot.rmap + WORD * (gfn - memslot.base_gfn)
        return SlotView(gfn, where, 0, (), self.named("kernel", where))

    def memslot(self, gfn: int) -> Memslot | None:
        """Return the memslot that holds a gfn."""
        for memslot in self.vm.memslots:
            if memslot.base_gfn <= gfn < memslot.base_gfn + memslot.npages:
                return memslot
        return None

    def l1_page(self, gfn: int) -> L1Page:
        """Return the page of L1 with this number."""
        address = gfn << self.shift
        host = _at(self.vm.host, address)
        gfns = [gfn]
        if host is not None and host.leaf.address < address:
            # entries for a page of a huge leaf belong to the slot of the leaf's first page
            gfns.insert(0, host.leaf.address >> self.shift)
        slots = [self.slot(one) for one in gfns]
        kept = tuple(
            view
            for one, view in zip(gfns, slots, strict=True)
            if view is not None and (view.entries or one == gfns[0])
        )
        return L1Page(
            vm=self.vm.lpid,
            gfn=gfn,
            address=address,
            memslot=self.memslot(gfn),
            host=host,
            host_address=host.leaf.translate(address) if host else None,
            slots=kept,
        )

    def l2_page(self, lpid: int, address: int) -> L2Page:
        """Return the L2 page that holds an address."""
        nested = self.nested.get(lpid)
        l1 = _at(nested.l1, address) if nested and nested.l1 is not None else None
        host = _at(self.vm.host, l1.leaf.translate(address)) if l1 else None
        shadow = _at(nested.shadow, address) if nested else None
        shifts = [entry.leaf.shift for entry in (l1, host, shadow) if entry]
        size = 1 << min(shifts, default=SMALLEST_SHIFT)
        address &= -size
        l1_address = l1.leaf.translate(address) if l1 else None
        state, agrees, slot = None, None, None
        if host is not None:
            slot = host.leaf.address >> self.shift
        if shadow is not None:
            judgement = judge_leaf(self.checked.model, lpid, shadow.leaf)
            state = judgement.state
            firsts = [backing.address >> self.shift for backing in judgement.backing]
            slot = next(
                (place.gfn for place in judgement.entries if place.gfn in firsts),
                slot if slot in firsts or not firsts else firsts[0],
            )
        host_address = host.leaf.translate(l1_address) if host and l1_address is not None else None
        shadow_address = shadow.leaf.translate(address) if shadow else None
        if host_address is not None and shadow_address is not None:
            agrees = host_address == shadow_address
        return L2Page(
            vm=self.vm.lpid,
            lpid=lpid,
            address=address,
            size=size,
            l1=l1,
            l1_address=l1_address,
            host=host,
            host_address=host_address,
            shadow=shadow,
            shadow_address=shadow_address,
            state=state,
            agrees=agrees,
            slot=slot,
            entries=tuple(self.entries_of(lpid, address, size)),
        )

    def mappings(self, frame: int) -> Iterator[Mapping]:
        """Yield everything of this VM that maps a host page: L0's leaves, then shadow leaves."""
        for lpid, table in ((None, self.vm.host), *((n.lpid, n.shadow) for n in self.vm.nested)):
            for row in _overlapping(table.frame, table.size, frame, 1 << self.shift):
                found = _entry(table, int(row))
                inside = max(0, frame - found.leaf.frame)
                yield Mapping(self.vm.lpid, lpid, found.leaf.address + inside, found)

    def l1_leaves(self, address: int) -> Iterator[tuple[int, int]]:
        """Yield LPID and address of every L2 page that L1's tables map to a page of L1."""
        for nested in self.vm.nested:
            if nested.l1 is None:
                continue
            table = nested.l1
            for row in _overlapping(table.frame, table.size, address, 1 << self.shift):
                leaf = leaf_at(table, int(row))
                yield nested.lpid, leaf.address + max(0, address - leaf.frame)


def _entry(table: LeafTable, index: int) -> TableEntry:
    return TableEntry(leaf_at(table, index), int(table.where[index]))


def _at(table: LeafTable, address: int) -> TableEntry | None:
    index = int(table.find(addresses([address]))[0])
    return _entry(table, index) if index >= 0 else None


def _overlapping(
    begin: NDArray[np.uint64], size: NDArray[np.uint64], first: int, length: int
) -> NDArray[np.int64]:
    """Return the indices of the ranges that overlap the one of ``length`` bytes at ``first``."""
    # compared by its last byte: the last page ends at 2 ** 64, which does not fit in 64 bits
    start, last = np.uint64(first), np.uint64(min(first + length, 1 << 64) - 1)
    return np.flatnonzero((begin <= last) & (start < begin + size))
