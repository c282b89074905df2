"""Captures with single words changed, as a fault of the kernel or of its memory would."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from inspector import encoding, pte
from inspector.capture import Capture, write_capture
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Nested, Slot, Snapshot, Vm
from inspector.memory.base import addresses
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import GuestSpace, KernelSpace
from tests.fixtures import opened

__all__ = ["Mutant"]


class Mutant:
    """The memory of a capture, to be changed at kernel or physical addresses.

    ``vm`` is the VM with the most entries, as it was before any change.
    """

    def __init__(self, path: Path) -> None:
        acquired = opened(path)
        self.profile = acquired.profile
        source = acquired.memory
        self._data = np.frombuffer(
            b"".join(
                source.read(int(start), int(size))
                for start, size in zip(source.starts, source.sizes, strict=True)
            ),
            dtype=np.uint8,
        ).copy()
        self.memory = SegmentedMemory(
            self._data, source.starts, source.sizes, np.cumsum(source.sizes) - source.sizes
        )
        self.kernel = KernelSpace(self.memory, self.profile)
        self.vm: Vm = max(acquired.snapshot.vms, key=lambda vm: vm.rmaps.word.size)
        self.page_shift = acquired.snapshot.page_shift

    def write(self, address: int, value: int, size: int = 8) -> None:
        """Write an integer of the kernel's at a kernel address."""
        order: Literal["little", "big"] = "little" if self.profile.byte_order == "<" else "big"
        self.put(self.kernel.physical(address), value.to_bytes(size, order))

    def write_pte(self, address: int, value: int) -> None:
        """Write a page-table entry at a physical address."""
        self.put(address, value.to_bytes(8, "big"))

    def put(self, physical: int, data: bytes) -> None:
        """Write bytes at a physical address."""
        index = int(np.searchsorted(self.memory.starts, np.uint64(physical), side="right")) - 1
        inside = physical - int(self.memory.starts[index])
        assert 0 <= inside <= int(self.memory.sizes[index]) - len(data)
        offset = int(self.memory.offsets[index]) + inside
        self._data[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    def pte_at(self, physical: int) -> int:
        """Return a page-table entry."""
        return int.from_bytes(self.memory.read(physical, 8), "big")

    def entry_above(self, physical: int) -> int:
        """Return where the entry stands that leads to the last-level table of a shadow entry."""
        table = physical & ~0xFFF
        for start, size in zip(self.memory.starts, self.memory.sizes, strict=True):
            words = np.frombuffer(self.memory.read(int(start), int(size) & ~7), dtype=">u8")
            wanted = np.uint64(pte.VALID | table)
            bits = np.uint64(pte.VALID | pte.LEAF | pte.NEXT_TABLE_MASK)
            hits = np.flatnonzero(words & bits == wanted)
            if hits.size:
                return int(start) + 8 * int(hits[0])
        raise ValueError(f"nothing leads to the table at {table:#x}")

    def guest_physical(self, l1_real: int) -> int:
        """Return the physical address of an L1 real address."""
        mm = self.kernel.field("kvm", self.vm.address, "mm")
        pgd = self.kernel.field("mm_struct", mm, "pgd")
        guest = GuestSpace(self.kernel, pgd, self.vm.memslots)
        return int(guest.translate(addresses([l1_real]))[0][0])

    def slot(self, least: int, most: int = 1 << 30) -> Slot:
        """Return a slot whose entries are all live, with a number of them."""
        return next(slot for slot in self.live_slots() if least <= len(slot.words) <= most)

    def live_slots(self) -> list[Slot]:
        """Return the slots all of whose entries are live."""
        shadows = {nested.lpid: nested.shadow for nested in self.vm.nested}
        found = []
        for slot in self.vm.rmaps:
            host = self.vm.host.find(addresses([slot.gfn << self.page_shift]))[0]
            entries = [encoding.decode(int(word)) for word in slot.words]
            if host < 0 or any(entry.lpid not in shadows for entry in entries):
                continue
            leaves = [shadows[e.lpid].find(addresses([e.gpa]))[0] for e in entries]
            frames = [shadows[e.lpid].frame[i] for e, i in zip(entries, leaves, strict=True)]
            if min(leaves) >= 0 and set(frames) == {self.vm.host.frame[host]}:
                found.append(slot)
        return found

    def shadow_entry(self, word: int) -> int:
        """Return the physical address of the shadow leaf that an entry leads to."""
        entry = encoding.decode(word)
        nested = self.nested(entry.lpid)
        return int(nested.shadow.where[nested.shadow.find(addresses([entry.gpa]))[0]])

    def nested(self, lpid: int) -> Nested:
        """Return a nested guest."""
        return next(nested for nested in self.vm.nested if nested.lpid == lpid)

    def snapshot(self) -> Snapshot:
        """Return what is found in the changed memory."""
        return collect(self.kernel, vm_list(self.kernel))

    def save(self, path: Path) -> Path:
        """Write the changed memory as a capture."""
        write_capture(path, Capture(self.memory, self.profile, {"made": "by a mutation"}))
        return path
