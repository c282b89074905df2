"""The parts of a VM's state: its memslots with their rmap arrays, and its nested guests."""

from __future__ import annotations

from dataclasses import dataclass, field

from inspector.model.slot import ModelSlot
from inspector.model.vm import Table

__all__ = ["DIRTY_LOGGED", "READ_ONLY", "Guest", "Memslot"]

DIRTY_LOGGED = 1
READ_ONLY = 2
"""``kvm_memory_slot.flags``: KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY."""


@dataclass
class Memslot:
    """A memslot and its rmap array.

    ``slots`` is keyed by the index into the array.  The kernel as it is can
    use an index outside the array; such a slot is kept under that index.
    """

    id: int
    base_gfn: int
    npages: int
    hva: int
    flags: int = 0
    slots: dict[int, ModelSlot] = field(default_factory=dict)
    dirty: set[int] = field(default_factory=set)

    def slot(self, gfn: int) -> ModelSlot:
        """Return the slot that the kernel takes for a gfn; create it if it is empty."""
        return self.slots.setdefault(gfn - self.base_gfn, ModelSlot())

    def holds(self, gfn: int) -> bool:
        """Say whether a gfn belongs to the memslot."""
        return 0 <= gfn - self.base_gfn < self.npages

    @property
    def logs_dirty(self) -> bool:
        """Whether writes to it are logged; it is then mapped in single pages."""
        return bool(self.flags & DIRTY_LOGGED)

    @property
    def gfns(self) -> range:
        """Its guest pages."""
        return range(self.base_gfn, self.base_gfn + self.npages)


@dataclass
class Guest:
    """A nested guest, ``struct kvm_nested_guest``."""

    l1_lpid: int
    shadow_lpid: int
    refcnt: int = 0
    l1_gr_to_hr: int = 0
    process_table: int = 0
    shadow: Table = field(default_factory=Table)
    released: bool = False
