"""Address spaces that translate: kernel virtual addresses and L1 real addresses.

Each is a layer over physical memory with the same two reads.  The vCPU is
never asked to translate, because its translation depends on the guest in which
it was stopped.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.errors import MemoryNotReadable
from inspector.image.profile import Profile
from inspector.memory.interface import AddressSpace, PhysicalMemory, Records
from inspector.memory.numbers import U64, addresses, integer, is_address
from inspector.memory.ranges import Ranges
from inspector.regions import LINEAR_MAP, LINEAR_SIZE, OFFSET_MASK, linear_to_physical
from inspector.structures.radix import Translated, translate

__all__ = ["GuestSpace", "KernelSpace", "SlotRange"]


NOT_MAPPED = "no page table maps it"


def _why_not(found: Translated) -> str:
    if not found.unread.any():
        return NOT_MAPPED
    place = int(found.unread[0])
    return f"the page-table entry at physical address {place:#x} that translates it is missing"


class _Translated:
    """An address space whose reads are split at page borders and translated piece by piece."""

    name = "translated"

    def __init__(self, memory: AddressSpace, page_size: int) -> None:
        self.memory = memory
        self.page_size = page_size

    def translate(self, where: U64) -> tuple[U64, NDArray[np.bool_]]:
        """Return physical addresses, and which of them are known."""
        raise NotImplementedError

    def why_not(self, address: int) -> str:
        """Return the reason why an address has no translation."""
        return NOT_MAPPED

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at one address."""
        border = address - address % self.page_size + self.page_size
        begins = [address, *range(border, address + length, self.page_size)] if length else []
        inside = [begin for begin in begins if is_address(begin)]
        physical, known = self.translate(addresses(inside))
        pieces = []
        for row, begin in enumerate(begins):
            take = min(address + length, border + row * self.page_size) - begin
            if row >= len(inside) or not known[row]:
                why = self.why_not(begin) if is_address(begin) else NOT_MAPPED
                raise MemoryNotReadable(begin, take, why, self.name)
            try:
                pieces.append(self.memory.read(int(physical[row]), take))
            except MemoryNotReadable as error:
                raise MemoryNotReadable(begin, take, error.reason, self.name) from error
        return b"".join(pieces)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each address."""
        page = np.uint64(self.page_size)
        inside = where % page
        if not length:
            return Records(np.zeros((where.size, 0), np.uint8), np.ones(where.size, np.bool_))
        if not where.size or not np.any(inside + np.uint64(length) > page):
            return self._read_pieces(where, length)
        if length % self.page_size == 0 and not np.any(inside):
            return self._read_pages(where, length)
        data = np.zeros((where.size, length), dtype=np.uint8)
        present = np.zeros(where.size, dtype=np.bool_)
        for row, address in enumerate(where):
            try:
                piece = self.read(int(address), length)
            except MemoryNotReadable:
                continue
            data[row] = np.frombuffer(piece, dtype=np.uint8)
            present[row] = True
        return Records(data, present)

    def _read_pages(self, where: U64, length: int) -> Records:
        # A record is several whole pages, and is present if all of them are.
        count = length // self.page_size
        steps = np.arange(count, dtype=np.uint64) * np.uint64(self.page_size)
        pages = (where[:, None] + steps).reshape(-1)
        data, present = self._read_pieces(pages, self.page_size)
        whole = np.all(present.reshape(-1, count), axis=1)
        return Records(data.reshape(where.size, length), whole)

    def _read_pieces(self, where: U64, length: int) -> Records:
        # No record crosses a page border here, so each has one translation.
        physical, known = self.translate(where)
        if known.all():
            return self.memory.read_many(physical, length)
        data = np.zeros((where.size, length), dtype=np.uint8)
        present = np.zeros(where.size, dtype=np.bool_)
        records = self.memory.read_many(physical[known], length)
        data[known] = records.data
        present[known] = records.present
        return Records(data, present)


class KernelSpace(_Translated):
    """Kernel virtual addresses of the host (L0), with its structures.

    The linear map is arithmetic; everything else (vmalloc, modules) goes
    through ``swapper_pg_dir``.
    """

    name = "kernel"

    def __init__(self, memory: AddressSpace, profile: Profile) -> None:
        super().__init__(memory, profile.page_size)
        self.profile = profile
        swapper = linear_to_physical(profile.symbols["swapper_pg_dir"])
        self._root = pte.Root(swapper, pte.PGD_BITS)

    @property
    def ram(self) -> Ranges | None:
        """Where the machine has memory, None where that is not known."""
        return self.memory.ram if isinstance(self.memory, PhysicalMemory) else None

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at one address; in the linear map that is one read."""
        if address >= LINEAR_MAP and address + length <= LINEAR_MAP + LINEAR_SIZE:
            # If this fails, the read page by page below finds the page that is missing.
            with contextlib.suppress(MemoryNotReadable):
                return self.memory.read(address & OFFSET_MASK, length)
        return super().read(address, length)

    def translate(self, where: U64) -> tuple[U64, NDArray[np.bool_]]:
        """Return physical addresses of kernel virtual addresses."""
        # Unsigned: an address below the linear map wraps to a large number.
        linear = where - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
        physical = where & np.uint64(OFFSET_MASK)
        known = linear.copy()
        rest = np.flatnonzero(~linear & (where >= np.uint64(LINEAR_MAP)))
        if rest.size:
            found = translate(self.memory, self._root, where[rest])
            physical[rest] = found.physical
            known[rest] = found.known
        return physical, known

    def can_hold(self, address: int, size: int, alignment: int) -> bool:
        """Say whether ``size`` aligned bytes can lie at an address: in the linear map and RAM."""
        if not 0 <= address - LINEAR_MAP < LINEAR_SIZE or address % alignment:
            return False
        first = linear_to_physical(address)
        return self.ram is None or (self.ram.hold(first) and self.ram.hold(first + size - 1))

    def why_not(self, address: int) -> str:
        """Return the reason why an address has no translation."""
        if address < LINEAR_MAP:
            return NOT_MAPPED
        return _why_not(translate(self.memory, self._root, addresses([address])))

    def physical(self, address: int) -> int:
        """Return the physical address of one kernel virtual address.

        Raises:
            MemoryNotReadable: the kernel does not map it.
        """
        where = addresses([address] if is_address(address) else [])
        physical, known = self.translate(where)
        if not known.any():
            why = self.why_not(address) if is_address(address) else NOT_MAPPED
            raise MemoryNotReadable(address, 1, why, "kernel")
        return int(physical[0])

    def unsigned(self, address: int, size: int) -> int:
        """Read an unsigned integer of ``size`` bytes in the kernel's byte order."""
        return integer(self.read(address, size), self.profile.byte_order)

    def pointer(self, address: int) -> int:
        """Read a pointer."""
        return self.unsigned(address, 8)

    def words(self, where: U64) -> tuple[U64, NDArray[np.bool_]]:
        """Read a 64-bit word at each address."""
        data, present = records = self.read_many(where, 8)
        return records.words(self.profile.byte_order).reshape(len(data)), present

    def field(self, struct: str, address: int, member: str) -> int:
        """Read one integer or pointer member of the structure at ``address``."""
        offset, size = self.profile.struct(struct).place(member)
        return self.unsigned(address + offset, size)


class SlotRange(Protocol):
    """The members of a memslot that ``GuestSpace`` needs."""

    @property
    def base_gfn(self) -> int: ...
    @property
    def npages(self) -> int: ...
    @property
    def userspace_addr(self) -> int: ...


class _Ranges(NamedTuple):
    """One row per memslot, in order: first L1 real address, bytes, and process address."""

    first: U64
    size: U64
    hva: U64


class GuestSpace(_Translated):
    """Real addresses of an L1 guest, read as the kernel's ``kvm_read_guest`` does.

    A guest page is found through its memslot and the page table of the
    process that backs it, not through L0's table for the guest: the kernel
    reads L1's tables that way, and they may lie in pages L1 never touched.
    """

    name = "L1"

    def __init__(
        self, kernel: KernelSpace, page_directory: int, memslots: tuple[SlotRange, ...]
    ) -> None:
        super().__init__(kernel.memory, kernel.page_size)
        self._root = pte.Root(linear_to_physical(page_directory), pte.PGD_BITS)
        shift = kernel.profile.page_shift
        ordered = sorted(memslots, key=lambda slot: slot.base_gfn)
        self._ranges = _Ranges(
            addresses([slot.base_gfn << shift for slot in ordered]),
            addresses([slot.npages << shift for slot in ordered]),
            addresses([slot.userspace_addr for slot in ordered]),
        )

    def translate(self, where: U64) -> tuple[U64, NDArray[np.bool_]]:
        """Return host physical addresses of L1 real addresses."""
        physical = np.zeros(where.size, dtype=np.uint64)
        known = np.zeros(where.size, dtype=np.bool_)
        rows, user = self._user_addresses(where)
        found = translate(self.memory, self._root, user)
        physical[rows] = found.physical
        known[rows] = found.known
        return physical, known

    def why_not(self, address: int) -> str:
        """Return the reason why an address has no translation."""
        _, user = self._user_addresses(addresses([address]))
        return _why_not(translate(self.memory, self._root, user))

    def _user_addresses(self, where: U64) -> tuple[NDArray[np.int64], U64]:
        """Return the rows of the L1 real addresses in a memslot, and their process addresses."""
        ranges = self._ranges
        if not ranges.first.size:
            return np.zeros(0, np.int64), addresses([])
        # The last memslot that begins at or below each address; -1 below the first.
        index = np.searchsorted(ranges.first, where, side="right") - 1
        inside = where - ranges.first[index]
        rows = np.flatnonzero((index >= 0) & (inside < ranges.size[index]))
        return rows, ranges.hva[index[rows]] + inside[rows]
