"""The parts of an answer: pages, the entries of the tables on their way, rmap entries."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from inspector.checks.findings import Finding
from inspector.kvm.snapshot import Memslot
from inspector.model.vm import Leaf, LeafState

__all__ = [
    "Answer",
    "HostPage",
    "L1Page",
    "L2Page",
    "Mapping",
    "Mark",
    "RmapEntry",
    "SlotView",
    "TableEntry",
]


class Mark(enum.Enum):
    """The mark of an rmap entry.

    An entry that a finding of ``inspector check`` names is suspicious,
    whatever it leads to.
    """

    LIVE = "live"
    STALE = "stale"
    SUSPICIOUS = "suspicious"
    UNKNOWN = "not known"


class TableEntry(NamedTuple):
    """A leaf of one of the three tables, and the address its entry was read at.

    ``where`` is physical; for L1's table it is an address of L1's own memory.
    """

    leaf: Leaf
    where: int


class RmapEntry(NamedTuple):
    """An rmap entry: its slot and position, its word and the address of that, and its mark.

    ``node`` is 0 if the word is in the slot itself or in the last ``next``;
    ``why`` is empty if the mark needs no reason.
    """

    gfn: int
    position: int
    word: int
    node: int
    place: int
    mark: Mark
    why: str


class SlotView(NamedTuple):
    """An element of an rmap array with all of its entries; ``findings`` name the slot itself."""

    gfn: int
    where: int
    head: int
    entries: tuple[RmapEntry, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class L2Page:
    """An L2 page and where the tables lead it.

    ``size`` in bytes is that of the smallest leaf on the way.  ``l1_address``
    and ``host_address`` are where L1's table and then L0's lead;
    ``shadow_address`` is where the shadow table does.  ``state`` says
    whether L0 finds the shadow leaf again, ``agrees`` whether both ways lead
    to one place, None where one of them leads nowhere.  ``slot`` is the gfn
    of the slot that its entry belongs to, and ``entries`` are all that name
    the page, in whatever slot.
    """

    vm: int
    lpid: int
    address: int
    size: int
    l1: TableEntry | None
    l1_address: int | None
    host: TableEntry | None
    host_address: int | None
    shadow: TableEntry | None
    shadow_address: int | None
    state: LeafState | None
    agrees: bool | None
    slot: int | None
    entries: tuple[RmapEntry, ...]


@dataclass(frozen=True, kw_only=True)
class L1Page:
    """A page of L1, of L0's page size, with the slots that can hold entries for it.

    Inside a huge page of L0 the first of them is the slot of the huge page's
    first page.
    """

    vm: int
    gfn: int
    address: int
    memslot: Memslot | None
    host: TableEntry | None
    host_address: int | None
    slots: tuple[SlotView, ...]


class Mapping(NamedTuple):
    """A leaf onto a host page, and the address it maps to that page.

    ``lpid`` is the L1 LPID of the nested guest whose shadow leaf it is, None
    for L0's leaf for the VM.
    """

    vm: int
    lpid: int | None
    address: int
    entry: TableEntry


class HostPage(NamedTuple):
    """A host page, of L0's page size, and everything that maps it."""

    address: int
    mapped_by: tuple[Mapping, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question.

    ``meanings`` say what the number in the question was found to be,
    ``findings`` are those that name something in the answer, ``notes`` say
    what could not be read, and ``left_out`` counts the L2 pages beyond the
    limit.
    """

    asked: str
    page_shift: int
    meanings: tuple[str, ...]
    l2_pages: tuple[L2Page, ...]
    l1_pages: tuple[L1Page, ...]
    host_pages: tuple[HostPage, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    left_out: int
