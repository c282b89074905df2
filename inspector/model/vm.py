"""What must hold for a whole VM, stated for one entry and for one shadow leaf.

When L0 takes a host page away from a guest, it finds its own leaf for that
page and empties the rmap slots of every guest page in it
(``kvmppc_unmap_pte``, ``kvmhv_remove_nest_rmap_range``).  Each entry that it
meets there leads to a shadow leaf, which it clears if the leaf still maps into
that host page.  A shadow leaf that no such walk reaches outlives the page.

A stale entry leads to no leaf, or to a leaf that maps elsewhere.  It is legal:
KVM never removes a single entry.  A shadow leaf that L1's table no longer
agrees with is legal too, as long as L0 can find it: L1 may change its table and
invalidate later.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from inspector import encoding, pte
from inspector.model.slot import Walk, kernel_walk

__all__ = [
    "EntryPlace",
    "EntryState",
    "Leaf",
    "LeafJudgement",
    "LeafState",
    "Table",
    "Tables",
    "VmState",
    "VmView",
    "judge_entry",
    "judge_leaf",
]


class Leaf(NamedTuple):
    """A leaf of a radix table: what it translates, its entry, log2 of its size."""

    address: int
    entry: int
    shift: int

    @property
    def frame(self) -> int:
        """Physical address of the first byte it maps to."""
        return pte.frame_of(self.entry, self.shift)

    @property
    def size(self) -> int:
        """Bytes it maps."""
        return 1 << self.shift

    def translate(self, address: int) -> int:
        """Return where an address inside the leaf leads."""
        return self.frame + address - self.address


class EntryPlace(NamedTuple):
    """An entry and its place: the slot, the position in list order, whether the kernel meets it."""

    gfn: int
    position: int
    word: int
    reachable: bool


class EntryState(enum.Enum):
    """What an rmap entry leads to."""

    LIVE = "live"
    NO_GUEST = "no nested guest has this LPID"
    NO_LEAF = "the shadow table maps nothing there"
    MOVED = "the shadow table maps another host page there"
    NO_HOST_PAGE = "L0 maps no host page for the slot"


class LeafState(enum.Enum):
    """Whether L0 finds a shadow leaf again."""

    COVERED = "covered"
    HIDDEN = "its entry stands behind a zero word, where the kernel's walk ends"
    LOST = "no entry for it stands in a slot that L0 consults for its host page"
    MOVED = "its frame is not the one L0 and L1 map its address to"
    UNMAPPED = "L0 maps its host page for no guest page"


class LeafJudgement(NamedTuple):
    """The model's judgement of one shadow leaf.

    ``entries`` are all entries for it in any slot; ``backing`` are L0's leaves
    for its host page; ``l1`` and ``host`` are the leaves of L1 and L0 that
    translate its L2 address, and ``expected`` is the frame that they lead to,
    None if one of them maps nothing.  ``agrees`` is then None too.
    """

    state: LeafState
    entries: tuple[EntryPlace, ...]
    backing: tuple[Leaf, ...]
    l1: Leaf | None
    host: Leaf | None
    expected: int | None

    def agrees(self, leaf: Leaf) -> bool | None:
        """Say whether the leaf maps the frame that L1's and L0's tables lead to."""
        return None if self.expected is None else self.expected == leaf.frame


class Tables(Protocol):
    """A radix table that can be searched."""

    def at(self, address: int) -> Leaf | None:
        """Return the leaf that translates an address."""

    def onto(self, frame: int) -> Sequence[Leaf]:
        """Return the leaves whose host page holds a physical address."""


class VmView(Protocol):
    """What the model needs to know of a VM, in whatever form the VM is kept."""

    page_shift: int

    @property
    def host(self) -> Tables:
        """L0's table for the guest."""

    def shadow(self, lpid: int) -> Tables | None:
        """Return the shadow table of a nested guest, None if there is no such guest."""

    def l1_table(self, lpid: int) -> Tables | None:
        """Return L1's own table for a nested guest, None if it has none or it is unreadable."""

    def entries_for(self, lpid: int, leaf: Leaf) -> Sequence[EntryPlace]:
        """Return every rmap entry whose LPID and L2 address lie in a shadow leaf."""


def judge_entry(vm: VmView, gfn: int, word: int) -> EntryState:
    """Say what an entry in the slot of ``gfn`` leads to (``kvmhv_remove_nest_rmap``)."""
    entry = encoding.decode(word)
    shadow = vm.shadow(entry.lpid)
    if shadow is None:
        return EntryState.NO_GUEST
    leaf = shadow.at(entry.gpa)
    if leaf is None:
        return EntryState.NO_LEAF
    host = vm.host.at(gfn << vm.page_shift)
    if host is None:
        return EntryState.NO_HOST_PAGE
    if pte.frame_of(leaf.entry, host.shift) != host.frame:
        return EntryState.MOVED
    return EntryState.LIVE


def judge_leaf(vm: VmView, lpid: int, leaf: Leaf) -> LeafJudgement:
    """Say whether L0 finds a shadow leaf again when its host page goes away."""
    backing = tuple(vm.host.onto(leaf.frame))
    entries = tuple(vm.entries_for(lpid, leaf))
    # The entries in the slots that L0 empties when it takes the host page away.
    consulted = [
        place
        for place in entries
        if any(0 <= (place.gfn << vm.page_shift) - host.address < host.size for host in backing)
    ]
    l1_table = vm.l1_table(lpid)
    l1 = l1_table.at(leaf.address) if l1_table else None
    l1_address = l1.translate(leaf.address) if l1 else None
    host = vm.host.at(l1_address) if l1_address is not None else None
    expected = host.translate(l1_address) if host and l1_address is not None else None

    if any(place.reachable for place in consulted):
        state = LeafState.COVERED
    elif consulted:
        state = LeafState.HIDDEN
    elif (
        # The leaf has an entry, but in a slot of the page that L1's table leads to now.
        host is not None
        and expected != leaf.frame
        and any(0 <= (place.gfn << vm.page_shift) - host.address < host.size for place in entries)
    ):
        state = LeafState.MOVED
    elif not backing:
        state = LeafState.UNMAPPED
    else:
        state = LeafState.LOST
    return LeafJudgement(state, entries, backing, l1, host, expected)


@dataclass
class Table:
    """A radix table kept as a dictionary of its leaves by address."""

    leaves: dict[int, Leaf] = field(default_factory=dict)

    def at(self, address: int) -> Leaf | None:
        """Return the leaf that translates an address."""
        # A leaf is kept under its first address, so each page size has one candidate.
        for shift in (12, 16, 21, 30):
            leaf = self.leaves.get(address >> shift << shift)
            if leaf is not None and leaf.shift >= shift and address < leaf.address + leaf.size:
                return leaf
        return None

    def onto(self, frame: int) -> Sequence[Leaf]:
        """Return the leaves whose host page holds a physical address."""
        return [leaf for leaf in self.leaves.values() if 0 <= frame - leaf.frame < leaf.size]

    def inside(self, address: int, size: int) -> list[Leaf]:
        """Return the leaves that begin in a range of addresses."""
        # Look up each page of the range, or go through all leaves, whichever is less.
        if (size >> 12) < len(self.leaves):
            places = range(address, address + size, 1 << 12)
            return [self.leaves[place] for place in places if place in self.leaves]
        return [leaf for leaf in self.leaves.values() if 0 <= leaf.address - address < size]

    def put(self, leaf: Leaf) -> None:
        """Set a leaf, in place of one that begins at the same address."""
        self.leaves[leaf.address] = leaf

    def drop(self, leaf: Leaf) -> None:
        """Remove a leaf."""
        del self.leaves[leaf.address]


@dataclass
class VmState:
    """A VM kept in dictionaries: the model's own view of one.

    ``slots`` maps a gfn to its words in list order; ``shadows`` and
    ``l1_tables`` map the L1 LPID of a nested guest to its tables.  ``walk``
    returns the words of a slot that the kernel meets.
    """

    page_shift: int
    host: Table = field(default_factory=Table)
    slots: dict[int, tuple[int, ...]] = field(default_factory=dict)
    shadows: dict[int, Table] = field(default_factory=dict)
    l1_tables: dict[int, Table] = field(default_factory=dict)
    walk: Walk = kernel_walk

    def shadow(self, lpid: int) -> Table | None:
        """Return the shadow table of a nested guest."""
        return self.shadows.get(lpid)

    def l1_table(self, lpid: int) -> Tables | None:
        """Return L1's own table for a nested guest."""
        return self.l1_tables.get(lpid)

    def entries_for(self, lpid: int, leaf: Leaf) -> list[EntryPlace]:
        """Return every rmap entry whose LPID and L2 address lie in a shadow leaf."""
        found = []
        for gfn, words in self.slots.items():
            hidden = len(self.walk(words))
            for index, word in enumerate(words):
                entry = encoding.decode(word)
                if entry.lpid == lpid and 0 <= entry.gpa - leaf.address < leaf.size:
                    found.append(EntryPlace(gfn, index, word, index < hidden))
        return found
