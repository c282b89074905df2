"""What was found: one immutable picture of KVM-HV at one moment.

Everything that was read is here, decoded but not judged.  The same picture
comes out of a live machine, a dump and a capture.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.memory.numbers import U64
from inspector.memory.ranges import Ranges
from inspector.structures.radix import LeafTable
from inspector.structures.witness import UNCONFIRMED, Confirmation, Word

__all__ = [
    "NO_HASH_RMAPS",
    "ArrayPages",
    "Gap",
    "HashRmaps",
    "HashSlot",
    "HostState",
    "LinkProblem",
    "Memslot",
    "Nested",
    "Part",
    "PartitionEntry",
    "Region",
    "RingProblem",
    "Rmaps",
    "Slot",
    "Snapshot",
    "Unowned",
    "Vm",
    "VmList",
]


Places = Mapping[str, tuple[int, int]]
"""Kernel address and size in bytes of some members of a structure, by their names."""


class Part(enum.Enum):
    """The parts of a VM's state that are read, and may be missing, each by itself."""

    MEMSLOTS = "memslots"
    RMAPS = "rmap arrays"
    HOST = "L0's table"
    NESTED = "nested guests"
    SHADOW = "shadow tables"
    L1 = "L1's tables"
    PARTITION = "partition table"
    RINGS = "rings of HPT entries"
    VM = "the VM itself"


class PartitionEntry(NamedTuple):
    """An entry of L0's partition table: the physical address of its dword 0, and that dword.

    ``second`` is dword 1, None where it could not be read.
    """

    where: int
    dword: int
    second: int | None = None


class Region(NamedTuple):
    """Physical memory that the kernel keeps for itself.

    ``what`` names it, ``symbol`` is the symbol that tells where it is, and
    ``address`` the kernel address of that symbol, 0 where none tells it.
    """

    begin: int
    end: int
    what: str
    symbol: str
    address: int


class Unowned(NamedTuple):
    """An entry of the partition table for an LPID of no VM and no nested guest that was found.

    ``table`` is the tree that it leads to, None where it is no radix tree
    such as KVM makes.
    """

    lpid: int
    entry: PartitionEntry
    table: LeafTable | None


@dataclass(frozen=True)
class HostState:
    """What was read of the host itself.

    ``ram`` is where the machine has memory, ``regions`` what the kernel's
    image takes of it, and ``zero_page`` the physical address of the page that
    the kernel maps wherever a page of zeros is only read; each None or empty
    where nothing tells it.  ``root`` is the physical address of the kernel's
    own page table, ``sizes`` has the sizes of structures in bytes.

    ``partition`` is the physical address of the partition table, ``entries``
    how many of its entries were read, ``used`` how many of them lead
    somewhere, and ``unowned`` those that do for nobody.  ``first_entry`` is
    that of LPID 0, the host itself, where the host has one.  ``gap`` says why
    the table, or a part of it, was not read.  ``lost`` says so of entries
    that the file of the target had before it was cut off.
    """

    ram: Ranges | None = None
    regions: tuple[Region, ...] = ()
    zero_page: int | None = None
    root: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    partition: int | None = None
    entries: int = 0
    used: int = 0
    unowned: tuple[Unowned, ...] = ()
    first_entry: PartitionEntry | None = None
    gap: str = ""
    lost: str = ""


@dataclass(frozen=True)
class Memslot:
    """A ``struct kvm_memory_slot``; sizes in pages of the host."""

    address: int
    id: int
    base_gfn: int
    npages: int
    flags: int
    userspace_addr: int
    rmap: int
    as_id: int = 0
    places: Places = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class LinkProblem:
    """Where following a list had to stop before its end.

    ``slot`` indexes the slots of the VM, ``place`` is the address of the
    word that holds the bad ``link``, and ``kind`` is one of ``"pointer"``
    (not an address of the linear map), ``"nowhere"`` (the machine has no
    memory there), ``"unreadable"`` (it may have, but the bytes are missing:
    ``why``), ``"cycle"`` and ``"end"`` (the list ends without an entry).
    """

    slot: int
    kind: str
    place: int
    link: int
    why: str = ""

    @property
    def missing(self) -> bool:
        """Whether bytes were not readable, rather than readable and wrong."""
        return self.kind == "unreadable"


@dataclass(frozen=True)
class Slot:
    """One non-empty rmap slot: words in list order, newest first."""

    memslot: int
    gfn: int
    where: int
    head: int
    words: U64
    nodes: U64


class ArrayPages(NamedTuple):
    """The pages that an rmap array lies in.

    ``memslot`` is an index into ``Vm.memslots``.  Per page: ``virtual`` is its
    kernel address, ``physical`` where the kernel's page table leads it.
    """

    memslot: int
    virtual: U64
    physical: U64


@dataclass(frozen=True)
class Rmaps:
    """All non-empty rmap slots of a VM.

    Per slot: ``memslot`` (index into ``Vm.memslots``), ``gfn``, ``where``
    (kernel address of the array element) and ``head`` (its word).  Slot *i*
    holds entries ``start[i]:start[i + 1]`` of ``word``, ``node`` and
    ``place``, in list order; ``node`` is the address of the ``struct
    rmap_nested``, or 0 for the word in the slot or in the last ``next``, and
    ``place`` the kernel address the word itself was read at.
    """

    memslot: NDArray[np.int64]
    gfn: U64
    where: U64
    head: U64
    start: NDArray[np.int64]
    word: U64
    node: U64
    place: U64
    problems: tuple[LinkProblem, ...] = ()
    unread: tuple[tuple[int, int], ...] = ()
    """Gaps ``(first gfn, pages)`` of rmap arrays that could not be read."""
    pages: tuple[ArrayPages, ...] = ()

    @property
    def incomplete(self) -> tuple[tuple[int, int], ...]:
        """Ranges ``(first gfn, pages)`` whose entries could not all be read."""
        broken_off = ((int(self.gfn[p.slot]), 1) for p in self.problems if p.missing)
        return (*self.unread, *broken_off)

    @cached_property
    def length(self) -> NDArray[np.int64]:
        """Number of entries of each slot."""
        return np.diff(self.start)

    @cached_property
    def slot(self) -> NDArray[np.int64]:
        """The slot each entry belongs to."""
        return np.repeat(np.arange(self.gfn.size), self.length)

    def __len__(self) -> int:
        return self.gfn.size

    def __getitem__(self, index: int) -> Slot:
        begin, end = self.start[index], self.start[index + 1]
        return Slot(
            int(self.memslot[index]),
            int(self.gfn[index]),
            int(self.where[index]),
            int(self.head[index]),
            self.word[begin:end],
            self.node[begin:end],
        )

    def __iter__(self) -> Iterator[Slot]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class RingProblem:
    """Where following a ring of HPT entries had to stop before it closed.

    ``slot`` indexes the slots of the VM, ``place`` is the address of the
    word that holds the bad ``index``, and ``kind`` is one of ``"range"``
    (the HPT has no such entry), ``"unreadable"`` and ``"back"`` (the next
    entry does not lead back to the one before it).
    """

    slot: int
    kind: str
    place: int
    index: int


@dataclass(frozen=True)
class HashSlot:
    """One rmap word of a hash guest, and its ring of HPT indices from the head forward."""

    memslot: int
    gfn: int
    where: int
    word: int
    indices: U64
    problems: tuple[RingProblem, ...]


@dataclass(frozen=True)
class HashRmaps:
    """All rmap words of a hash guest that are not zero (see ``inspector.hash_encoding``).

    They are no nested entries.
    Slot *i* has HPT indices ``start[i]:start[i + 1]`` of ``index``, in ring
    order.  Where the rings are not ``followed`` each slot has only the index
    in its word.
    """

    memslot: NDArray[np.int64]
    gfn: U64
    where: U64
    word: U64
    start: NDArray[np.int64]
    index: U64
    followed: bool
    problems: tuple[RingProblem, ...] = ()
    unread: tuple[tuple[int, int], ...] = ()
    """Gaps ``(first gfn, pages)`` of rmap arrays that could not be read."""
    pages: tuple[ArrayPages, ...] = ()

    def __len__(self) -> int:
        return self.gfn.size

    def __iter__(self) -> Iterator[HashSlot]:
        by_slot: dict[int, list[RingProblem]] = {}
        for problem in self.problems:
            by_slot.setdefault(problem.slot, []).append(problem)
        for i in range(len(self)):
            yield HashSlot(
                int(self.memslot[i]),
                int(self.gfn[i]),
                int(self.where[i]),
                int(self.word[i]),
                self.index[self.start[i] : self.start[i + 1]],
                tuple(by_slot.get(i, ())),
            )


_NO_INDEX = np.zeros(0, np.int64)
_NONE = np.zeros(0, np.uint64)
NO_HASH_RMAPS = HashRmaps(_NO_INDEX, _NONE, _NONE, _NONE, np.zeros(1, np.int64), _NONE, True)
"""What a radix guest has."""


@dataclass(frozen=True)
class Nested:
    """A ``struct kvm_nested_guest``: one L2 guest as L0 knows it.

    ``lpid`` is the key it is found under; ``l1_lpid`` what it says of
    itself.  ``shadow`` is L0's table for it, ``l1`` the table L1 gave it,
    None where L1 has none.  ``l1_host`` is the VM it says it belongs to, None
    where that is missing.
    """

    address: int
    lpid: int
    l1_lpid: int
    shadow_lpid: int
    refcnt: int
    l1_gr_to_hr: int
    process_table: int
    shadow_pgtable: int
    shadow: LeafTable
    l1: LeafTable | None
    partition: PartitionEntry | None = None
    l1_host: int | None = None
    places: Places = field(default_factory=dict, compare=False)


class Gap(NamedTuple):
    """Something of a VM, or of the host, that could not be read.

    ``part`` is what it belongs to, None where nothing that is checked looks
    at it; ``whole`` tells that nothing of the part was read.
    """

    text: str
    part: Part | None = None
    whole: bool = False


@dataclass(frozen=True)
class Vm:
    """A ``struct kvm``: one L1 guest.

    ``mmu_lock`` is the word of the lock and ``locked`` whether it was held
    when the machine stood still: its lists and tables may then be half way
    through a change.  A guest that is not ``radix`` has no ``rmaps``, tables
    and nested guests, but ``hash_rmaps``, which a radix guest has not.
    ``unread_guests`` are the L1 LPIDs of nested guests that could not be read,
    None where it is not known whether there are more than those in ``nested``.
    ``pid`` is the process of the VM, None where that could not be read.
    ``strays`` are the nested guests, with their L1 LPIDs, that a guest has
    which is not ``radix``: it should have none.  ``members`` are words of
    ``struct kvm`` that only confirm others, by their names, as far as they
    are there.  ``memslot_words`` and ``nested_words`` say which words of the
    containers confirm each other.
    ``process_table`` is what L1 has registered, None where the layout does
    not tell its place.  ``frames`` are the physical addresses of the pages that hold the structure,
    and ``page_directory`` the kernel address of the process's page table, 0
    where it could not be read.
    """

    address: int
    lpid: int
    pid: int | None
    radix: bool
    nesting: bool
    l1_ptcr: int
    mmu_lock: int
    locked: bool
    memslots: tuple[Memslot, ...]
    rmaps: Rmaps
    host: LeafTable
    nested: tuple[Nested, ...]
    gaps: tuple[Gap, ...] = ()
    hash_rmaps: HashRmaps = NO_HASH_RMAPS
    unread_guests: tuple[int, ...] | None = ()
    pgtable: int = 0
    partition: PartitionEntry | None = None
    strays: tuple[tuple[int, int], ...] = ()
    members: Mapping[str, Word] = field(default_factory=dict)
    memslot_words: Confirmation = UNCONFIRMED
    nested_words: Confirmation = UNCONFIRMED
    places: Places = field(default_factory=dict, compare=False)
    frames: tuple[int, ...] = ()
    page_directory: int = 0
    process_table: int | None = None

    def member(self, name: str) -> int | None:
        """Return a word of ``struct kvm`` that only confirms others, None where it is missing."""
        word = self.members.get(name)
        return None if word is None else word.value


class VmList(NamedTuple):
    """KVM's list of VMs: how many it leads to, and which of its words confirm each other.

    ``users`` is ``module.refcnt`` of kvm_hv, on which every VM has a
    reference, None where there is no such word.
    """

    listed: int = 0
    words: Confirmation = UNCONFIRMED
    users: Word | None = None


NO_LIST = VmList()
"""What a snapshot has that was not read from a list."""


@dataclass(frozen=True)
class Snapshot:
    """All VMs of a host at one moment; ``gaps`` tells of those that could not be read."""

    release: str
    build_id: str
    page_shift: int
    vms: tuple[Vm, ...]
    gaps: tuple[Gap, ...] = ()
    host: HostState = field(default_factory=HostState)
    vm_list: VmList = NO_LIST
