"""A small world for the specification: three memslots, a few pages, and the steps to change them.

Steps are plain tuples, so that a failing sequence can be read step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from inspector import pte
from inspector.model import guests, l1_walk, operations, removal
from inspector.model.holds import Broken, broken
from inspector.model.l1_tables import L1Tables
from inspector.model.page_fault import Access
from inspector.model.parts import DIRTY_LOGGED, Memslot
from inspector.model.rules import Rules
from inspector.model.state import State
from inspector.model.vm import Leaf

Step = tuple[Any, ...]

TABLES, DATA, ODD = 0, 1, 2
MIB = 1 << 20
DATA_GPA, ODD_GPA = 0x4000_0000, 0x8010_0000
HVA = {TABLES: 0x7000_0000_0000, DATA: 0x7100_0000_0000, ODD: 0x7200_0010_0000}
HUGE = 21
LPIDS = (0, 1)
ALL_RIGHTS = pte.READ | pte.WRITE | pte.EXEC
READ_WRITE = pte.READ | pte.WRITE
RC = pte.REFERENCED | pte.CHANGED


class World:
    """One VM whose process owns pages of both sizes."""

    def __init__(self, page_shift: int, rules: Rules, *, hardware_sets_rc: bool) -> None:
        self.vm = State(page_shift, rules=rules, hardware_sets_rc=hardware_sets_rc)
        self.page = 1 << page_shift
        self._frame = 0x1_0000_0000
        self._changed: dict[int, set[int]] = {lpid: set() for lpid in LPIDS}
        self.add_memslot(TABLES, 0, 24 * MIB)
        self.add_memslot(DATA, DATA_GPA, 4 * MIB)
        # Begins and ends inside a large page of the process.
        self.add_memslot(ODD, ODD_GPA, 1 * MIB + 16 * self.page)
        self.collapse(DATA_GPA + 2 * MIB)
        for place in (ODD_GPA, ODD_GPA + MIB):
            self.collapse(place)
        self.tables = L1Tables(self.vm, 1 * MIB)
        self.tables.register()
        for lpid in LPIDS:
            self.tables.create(lpid)

    def hva(self, gpa: int) -> int:
        memslot = self.vm.memslot_of(gpa >> self.vm.page_shift)
        assert memslot is not None
        return memslot.hva + gpa - (memslot.base_gfn << self.vm.page_shift)

    def add_memslot(self, number: int, gpa: int, size: int) -> None:
        if number not in self.vm.memslots:
            shift = self.vm.page_shift
            memslot = Memslot(number, gpa >> shift, size >> shift, HVA[number])
            operations.add_memslot(self.vm, memslot)

    def delete_memslot(self, number: int) -> None:
        if number in self.vm.memslots:
            operations.delete_memslot(self.vm, number)

    def collapse(self, gpa: int) -> None:
        if self.vm.memslot_of(gpa >> self.vm.page_shift):
            self._process(self.hva(gpa) & -(1 << HUGE), HUGE)

    def _process(self, hva: int, shift: int, *, writable: bool = True) -> None:
        self._frame += 1 << HUGE
        operations.process_map(self.vm, hva, self._frame, shift, writable=writable)

    def replace(self, gpa: int, writable: bool) -> None:
        if self.vm.memslot_of(gpa >> self.vm.page_shift):
            self._process(self.hva(gpa) & -self.page, self.vm.page_shift, writable=writable)

    def throw_away(self, gpa: int, pages: int) -> None:
        if self.vm.memslot_of(gpa >> self.vm.page_shift):
            operations.process_unmap(self.vm, self.hva(gpa) & -self.page, pages * self.page)

    def age(self, gpa: int) -> None:
        if self.vm.memslot_of(gpa >> self.vm.page_shift):
            operations.age_pages(self.vm, self.hva(gpa) & -self.page, self.page)

    def dirty_log(self, number: int) -> None:
        if number in self.vm.memslots:
            removal.clear_dirty_log(self.vm, self.vm.memslots[number])

    def log_dirty(self, number: int, on: bool) -> None:
        if number in self.vm.memslots:
            operations.set_memslot_flags(self.vm, number, DIRTY_LOGGED if on else 0)

    def map(self, lpid: int, l2: int, l1: int, shift: int, flags: int) -> None:
        shift = shift if shift == HUGE else self.vm.page_shift
        l2, l1 = l2 & -(1 << shift), l1 & -(1 << shift)
        self.tables.map(lpid, l2, l1, shift, flags)
        self._changed[lpid].add(l2 & -(1 << HUGE))

    def careless(self, lpid: int, l2: int, l1: int, shift: int, flags: int, access: Access) -> None:
        """L1 maps a page and invalidates nothing, and L2 touches it."""
        self.map(lpid, l2, l1, shift, flags)
        self.touch(lpid, l2, access)

    def put(self, lpid: int, l2: int, l1: int, shift: int, flags: int, access: Access) -> None:
        """L1 maps a page as it should, and L2 touches it."""
        self.flush_page(lpid, l2)
        self.map(lpid, l2, l1, shift, flags)
        self.flush_lpid(lpid, 0) if shift == HUGE else self.flush_page(lpid, l2)
        self.touch(lpid, l2, access)

    def unmap(self, lpid: int, l2: int) -> None:
        self.tables.unmap(lpid, l2, self.vm.page_shift)
        self._changed[lpid].add(l2 & -(1 << HUGE))

    def kill(self, lpid: int) -> None:
        self.tables.clear(lpid)
        self.flush_lpid(lpid, 2)
        self.tables.create(lpid)

    def flush_page(self, lpid: int, l2: int) -> None:
        ap = 5 if self.page == (1 << 16) else 0
        guests.h_tlb_invalidate(self.vm, 0, lpid, l2 | (ap << 5))

    def flush_lpid(self, lpid: int, ric: int) -> None:
        guests.h_tlb_invalidate(self.vm, ric, lpid, 2 << 10)
        self._settle([lpid], ric)

    def flush_all(self, ric: int, killed: int | None) -> None:
        if killed is not None:
            self.tables.clear(killed)
        guests.h_tlb_invalidate(self.vm, ric, 0, 3 << 10)
        self._settle(LPIDS, ric)
        if killed is not None:
            self.tables.create(killed)

    def _settle(self, lpids: Iterable[int], ric: int) -> None:
        # RIC 1 invalidates a cache that KVM does not keep.
        for lpid in lpids if ric != 1 else ():
            self._changed[lpid].clear()

    def big_endian(self, on: bool) -> None:
        self.vm.big_endian = on

    def flush_range(self, lpid: int, l2: int, pages: int) -> None:
        size = 0x1 if self.page == (1 << 12) else 0x2
        guests.h_rpt_invalidate(self.vm, lpid, 0x1, size, l2, l2 + pages * self.page)

    def touch(self, lpid: int, l2: int, access: Access) -> None:
        leaf = l1_walk.translate(self.vm.read_l1, self.vm.l1_entry(lpid)[0], l2)
        if isinstance(leaf, Leaf):
            self._fault_in(leaf.translate(l2), access)
        operations.l2_access(self.vm, lpid, l2, access)

    def touch_l1(self, gpa: int, access: Access) -> None:
        self._fault_in(gpa, access)
        operations.l1_access(self.vm, gpa, access)

    def _fault_in(self, gpa: int, access: Access) -> None:
        """Give the process a page that it may use, as the host does before the kernel maps it."""
        if self.vm.memslot_of(gpa >> self.vm.page_shift):
            leaf = self.vm.process.at(self.hva(gpa))
            if leaf is None or (access.writing and not leaf.entry & pte.WRITE):
                self._process(self.hva(gpa) & -self.page, self.vm.page_shift)

    def settled(self, lpid: int, l2: int) -> bool:
        return (l2 & -(1 << HUGE)) not in self._changed[lpid]

    def broken(self) -> list[Broken]:
        return broken(self.vm, self.settled)


def run(
    steps: list[Step], rules: Rules, page_shift: int, *, hardware_sets_rc: bool
) -> list[Broken]:
    """Do the steps; return the invariants that are broken after the first step that breaks any."""
    world = World(page_shift, rules, hardware_sets_rc=hardware_sets_rc)
    for name, *arguments in steps:
        method: Callable[..., None] = getattr(world, name)
        method(*arguments)
        found = world.broken()
        if found:
            return found
    return []


class Act(NamedTuple):
    """A method of the world, and the values of each of its arguments, the plainest first."""

    name: str
    choices: tuple[Sequence[Any], ...]


_L2 = (0, 0x1_0000, (1 << HUGE) + 0x1_0000)
_L1 = (DATA_GPA, DATA_GPA + 0x1_0000, DATA_GPA + 2 * MIB, DATA_GPA + 2 * MIB + 0x1_0000, ODD_GPA)
_AGED = (DATA_GPA, DATA_GPA + 2 * MIB, DATA_GPA + 2 * MIB + 0x1_0000)
_SLOTS = (DATA, ODD)
_ACCESS = tuple(Access)
_RIC = (0, 1, 2)
_SHIFT = (12, 12, HUGE)
_FLAGS = (ALL_RIGHTS | RC, READ_WRITE | RC, pte.READ | RC, ALL_RIGHTS | pte.REFERENCED)
_SWITCH = (False, True)

_L2_ACTS = (
    Act("put", (LPIDS, _L2, _L1, _SHIFT, _FLAGS, _ACCESS)),
    Act("put", (LPIDS, _L2, _L1, (12,), (ALL_RIGHTS | RC,), _ACCESS)),
    Act("careless", (LPIDS, _L2, _L1, _SHIFT, _FLAGS, _ACCESS)),
    Act("touch", (LPIDS, _L2, _ACCESS)),
)
_L1_ACTS = (
    Act("map", (LPIDS, _L2, _L1, _SHIFT, _FLAGS)),
    Act("flush_page", (LPIDS, _L2)),
    Act("unmap", (LPIDS, _L2)),
    Act("flush_lpid", (LPIDS, _RIC)),
    Act("flush_all", (_RIC, (None, *LPIDS))),
    Act("flush_range", (LPIDS, _L2, (1, 3, 40))),
    Act("kill", (LPIDS,)),
    Act("big_endian", (_SWITCH,)),
)
_HOST_ACTS = (
    Act("throw_away", (_L1, (1, 2, 512))),
    Act("replace", (_L1, _SWITCH)),
    Act("collapse", (_L1,)),
    Act("touch_l1", (_L1, _ACCESS)),
    Act("log_dirty", (_SLOTS, _SWITCH)),
    Act("delete_memslot", (_SLOTS,)),
    Act("add_memslot", ((DATA,), (DATA_GPA,), (4 * MIB,))),
)
_BITS_CLEARED = (Act("age", (_AGED,)), Act("dirty_log", (_SLOTS,)))

KINDS = (_L2_ACTS, _L2_ACTS, _L1_ACTS, _HOST_ACTS, _BITS_CLEARED)
"""The acts by kind. A kind is chosen first, because most acts need pages to act on."""


def _strategy(act: Act) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(act.name), *map(st.sampled_from, act.choices))


_strategies = [[_strategy(act) for act in kind] for kind in KINDS]


@st.composite
def _any_step(draw: st.DrawFn) -> Step:
    # Drawn by hand, because one_of would give every kind of step the same weight.
    return draw(st.one_of(draw(st.sampled_from(_strategies))))


steps = st.lists(_any_step(), min_size=1, max_size=12)
