"""The snapshot: an immutable description of KVM-HV at one moment.

It holds everything that was read, decoded but not judged.  A live machine, a
dump and a capture of one moment give the same snapshot.
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
    """The parts of a VM's state, each of which is read, or may be missing, by itself."""

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

    ``begin`` and ``end`` are physical addresses.  ``what`` names the memory,
    ``symbol`` is the symbol at which it begins, empty if there is none, and
    ``address`` the kernel address of that symbol, or 0.
    """

    begin: int
    end: int
    what: str
    symbol: str
    address: int


class Unowned(NamedTuple):
    """A partition-table entry whose LPID belongs to no VM and no nested guest that was found.

    ``table`` is the tree to which it leads, None if that is no radix tree such
    as KVM makes.
    """

    lpid: int
    entry: PartitionEntry
    table: LeafTable | None


@dataclass(frozen=True, kw_only=True)
class HostState:
    """The state of the host itself.

    ``ram`` is where the machine has memory, ``regions`` the memory of the
    kernel's image, and ``zero_page`` the physical address of the page that
    the kernel maps wherever a page of zeros is only read; each is None or
    empty if it is not known.  ``root`` is the physical address of the
    kernel's own page table, and ``sizes`` has sizes of structures in bytes.

    ``partition`` is the physical address of the partition table, ``entries``
    the number of its entries that were read, ``used`` the number of those
    whose dword 0 is not zero, and ``unowned`` the entries that belong to no
    VM or nested guest.  ``first_entry`` is the entry of LPID 0, the host
    itself, if the host has one.  ``gap`` says why the table, or a part of it,
    was not read.  ``lost`` says why entries are missing that the target's
    file held before it was cut off.
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
    """A ``struct kvm_memory_slot``; ``npages`` counts pages of the host."""

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
    """A place where a list could not be followed to its end.

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
    """The pages in which an rmap array lies: one row per page.

    ``memslot`` is an index into ``Vm.memslots``.  ``virtual`` is the kernel
    address of each page, ``physical`` the address to which the kernel maps it.
    """

    memslot: int
    virtual: U64
    physical: U64


@dataclass(frozen=True, kw_only=True)
class Rmaps:
    """All non-empty rmap slots of a VM.

    There are two groups of parallel arrays.  One row per slot: ``memslot``
    (index into ``Vm.memslots``), ``gfn``, ``where`` (kernel address of the
    array element) and ``head`` (its word).  One row per entry: ``word``,
    ``node`` and ``place``.  Slot *i* has the rows ``start[i]:start[i + 1]``
    of these, in list order.  ``node`` is the address of the ``struct
    rmap_nested``, or 0 for the word in the slot or in the last ``next``, and
    ``place`` the kernel address at which the word itself was read.
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
    """A place where a ring of HPT entries could not be followed until it closed.

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

    These words are not entries of nested guests.  Slot *i* has the HPT indices
    ``start[i]:start[i + 1]`` of ``index``, in ring order.  If the rings were
    not ``followed``, each slot has only the index in its word.
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
"""The ``hash_rmaps`` of a radix guest."""


@dataclass(frozen=True, kw_only=True)
class Nested:
    """A ``struct kvm_nested_guest``: one L2 guest as L0 knows it.

    ``lpid`` is the key under which it is found, and ``l1_lpid`` the LPID in
    the structure itself.  ``shadow`` is L0's table for it, ``l1`` the table
    that L1 gave it, None if L1 has given none.  ``l1_host`` is the address of
    the VM to which it says it belongs, None if that could not be read.
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

    ``part`` is the part to which it belongs, None if no check uses it;
    ``whole`` says that nothing of the part was read.
    """

    text: str
    part: Part | None = None
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Vm:
    """A ``struct kvm``: one L1 guest.

    ``mmu_lock`` is the word of the lock, and ``locked`` says whether it was
    held while the machine was stopped: lists and tables may then be in the
    middle of a change.  A guest that is not ``radix`` has ``hash_rmaps``, and
    no ``rmaps``, tables or nested guests; a radix guest has no ``hash_rmaps``.
    ``unread_guests`` are the L1 LPIDs of nested guests that could not be read,
    None if it is not known whether there are more than those in ``nested``.
    ``pid`` is the process of the VM, None if it could not be read.  ``strays``
    are the L1 LPIDs and addresses of the nested guests of a guest that is not
    ``radix`` and should have none.

    ``members`` are words of ``struct kvm`` that only confirm others, by name,
    as far as they could be read.  ``memslot_words`` and ``nested_words`` say
    which words of the containers confirm each other.  ``process_table`` is
    the word that L1 has registered, None if the layout or the target does not
    have it.  ``frames`` are the physical addresses of the pages that hold the
    structure, and ``page_directory`` is the kernel address of the process's
    page table, 0 if it could not be read.
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
        """Return a word of ``struct kvm`` that only confirms others, None if it is missing."""
        word = self.members.get(name)
        return None if word is None else word.value


class VmList(NamedTuple):
    """KVM's list of VMs: how many it has, and which of its words confirm each other.

    ``users`` is ``module.refcnt`` of kvm_hv, to which every VM holds a
    reference, None if there is no such word.
    """

    listed: int = 0
    words: Confirmation = UNCONFIRMED
    users: Word | None = None


NO_LIST = VmList()
"""The ``vm_list`` of a snapshot that was not read from a list."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All VMs of a host at one moment; ``gaps`` has those that could not be read."""

    release: str
    build_id: str
    page_shift: int
    vms: tuple[Vm, ...]
    gaps: tuple[Gap, ...] = ()
    host: HostState = field(default_factory=HostState)
    vm_list: VmList = NO_LIST
