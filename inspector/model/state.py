"""Everything the specification says about one VM and its nested guests.

The four structures are L1's tables (words in L1's memory), L0's table for L1,
the shadow tables and the rmap slots.  They depend on further state: the page
table of the VM's process, the memslots, the host's partition table, and the
translations that hardware may still hold.

Frames are physical addresses, but the specification gives no meaning to their
values: two states that differ only by a renaming of frames are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from inspector.model import l1_walk
from inspector.model.partition import PTCR_SIZE_MASK
from inspector.model.parts import Guest, Memslot
from inspector.model.rules import MUST_HOLD, Rules
from inspector.model.slot import ModelSlot
from inspector.model.vm import Table, Tables, VmState

__all__ = ["PMD_SHIFT", "PUD_SHIFT", "State"]

PMD_SHIFT = 21
PUD_SHIFT = 30

PTCR_BASE_MASK = 0x0FFF_FFFF_FFFF_F000


@dataclass
class State:
    """One VM: the state that the kernel keeps of it, and the state that this depends on.

    ``process`` is the page table of the VM's process, by host virtual
    address; ``lpids`` are the hardware LPIDs in use on the host, and
    ``partition`` has the table of each in the host's partition table.  ``tlb``
    holds the translations that hardware may still use, by hardware LPID.
    ``misuse`` says where released memory was used, ``unreported`` which guests
    ran although L1 was told otherwise.  ``big_endian`` is L1's own byte order; its
    tables are always big-endian.
    """

    page_shift: int
    lpid: int = 1
    rules: Rules = MUST_HOLD
    hardware_sets_rc: bool = True
    big_endian: bool = False
    ptcr: int = 0
    memslots: dict[int, Memslot] = field(default_factory=dict)
    process: Table = field(default_factory=Table)
    host: Table = field(default_factory=Table)
    guests: dict[int, Guest] = field(default_factory=dict)
    l1_memory: dict[int, int] = field(default_factory=dict)
    lpids: set[int] = field(default_factory=set)
    partition: dict[int, Table] = field(default_factory=dict)
    tlb: dict[int, Table] = field(default_factory=dict)
    misuse: list[str] = field(default_factory=list)
    unreported: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lpids.add(self.lpid)
        self.partition[self.lpid] = self.host

    def memslot_of(self, gfn: int) -> Memslot | None:
        """Return the memslot of a gfn (``gfn_to_memslot``)."""
        for memslot in self.memslots.values():
            if memslot.holds(gfn):
                return memslot
        return None

    def read_l1(self, address: int) -> int | None:
        """Return a doubleword of L1's memory, None outside its memory (``kvm_read_guest``)."""
        if self.memslot_of(address >> self.page_shift) is None:
            return None
        return self.l1_memory.get(address, 0)

    def l1_entry(self, lpid: int) -> tuple[int, int]:
        """Return both dwords of L1's partition-table entry, zeros if it has none."""
        if lpid >= self.lpid_limit:
            return 0, 0
        address = (self.ptcr & PTCR_BASE_MASK) + 16 * lpid
        first, second = self.read_l1(address), self.read_l1(address + 8)
        return (0, 0) if first is None or second is None else (first, second)

    @property
    def lpid_limit(self) -> int:
        """One above the largest LPID that L1's partition table has room for."""
        return 1 << ((self.ptcr & PTCR_SIZE_MASK) + 12 - 4)

    def take_lpid(self) -> int:
        """``kvmppc_alloc_lpid``: take the lowest hardware LPID that is free."""
        lpid = 1
        while lpid in self.lpids:
            lpid += 1
        self.lpids.add(lpid)
        return lpid

    def slots(self) -> Iterator[tuple[int, ModelSlot]]:
        """Yield every slot that is not empty, with its gfn."""
        for memslot in self.memslots.values():
            for index in sorted(memslot.slots):
                if memslot.slots[index].words:
                    yield memslot.base_gfn + index, memslot.slots[index]

    def view(self) -> VmState:
        """Return this state in the form that the judgements need."""
        return _View(
            self.page_shift,
            self.host,
            {gfn: slot.words for gfn, slot in self.slots()},
            {lpid: guest.shadow for lpid, guest in self.guests.items()},
            walk=self.rules.words_met,
            asked={
                lpid: l1_walk.L1Table(self.read_l1, guest.l1_gr_to_hr)
                for lpid, guest in self.guests.items()
            },
        )


@dataclass
class _View(VmState):
    """A state whose L1 tables are walked only when an address is looked up in them."""

    asked: dict[int, l1_walk.L1Table] = field(default_factory=dict)

    def l1_table(self, lpid: int) -> Tables | None:
        return self.asked.get(lpid)
