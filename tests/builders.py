"""Small VMs for property tests: random ones, and the same ones as a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from fixtures.mutations.plain import leaves_of
from inspector import encoding, pte
from inspector.kvm.snapshot import Memslot, Nested, Rmaps, Vm
from inspector.memory.numbers import addresses
from inspector.model.vm import Leaf, Table, VmState
from inspector.structures.radix import LeafTable

__all__ = [
    "GFN_REGIONS",
    "LPIDS",
    "leaf",
    "leaf_table",
    "made_states",
    "rmaps_of",
    "snapshot_vm",
    "state_of",
    "table",
    "vm_states",
    "words",
]

LEAF_BITS = pte.VALID | pte.LEAF | pte.REFERENCED | pte.CHANGED | pte.READ | pte.WRITE

LPIDS = (0, 1, 2, 4095)
HUGE = 21
BITS = (
    LEAF_BITS,
    LEAF_BITS,
    LEAF_BITS | pte.EXEC,
    LEAF_BITS & ~pte.WRITE,
    LEAF_BITS & ~pte.CHANGED,
    LEAF_BITS & ~pte.RECORDED,
    LEAF_BITS | pte.ATTRIBUTES,
)
# Few places, so that entries, leaves and frames meet each other often.
L2_REGIONS = (0, 1, 1 << 12)
GFN_REGIONS = (0, 5)
FRAMES = (0, 5, 600)
PAGES = st.integers(0, 2)


def leaf(address: int, frame: int, shift: int = 12, bits: int = LEAF_BITS) -> Leaf:
    """Return a leaf with the bits of a present entry."""
    return Leaf(address, frame | bits, shift)


def table(*leaves: Leaf) -> Table:
    """Return a table of these leaves."""
    return Table({leaf.address: leaf for leaf in leaves})


def leaf_table(source: Table, where: int = 0x1000) -> LeafTable:
    """Return a table in the form of a snapshot, its entries at invented addresses."""
    leaves = sorted(source.leaves.values())
    return LeafTable(
        addresses([leaf.address for leaf in leaves]),
        addresses([leaf.entry for leaf in leaves]),
        np.array([leaf.shift for leaf in leaves], dtype=np.uint8),
        addresses([where + 8 * i for i in range(len(leaves))]),
    )


def words(*entries: tuple[int, int]) -> tuple[int, ...]:
    """Return the words of a slot that holds these entries, newest first."""
    last = len(entries) - 1
    return tuple(
        encoding.encode(lpid, gpa, single=i == last) for i, (lpid, gpa) in enumerate(entries)
    )


def rmaps_of(slots: Mapping[int, Sequence[int]], base: int = 0xC000_0000_1000_0000) -> Rmaps:
    """Return slots in the form of a snapshot; addresses of slots and nodes are invented."""
    gfns = sorted(gfn for gfn, found in slots.items() if found)
    found: list[int] = []
    nodes: list[int] = []
    places: list[int] = []
    heads: list[int] = []
    start = [0]
    # nodes, places and found have one row per entry; heads one per slot, whose rows begin at start
    for gfn in gfns:
        first = base + 16 * len(found)
        count = len(slots[gfn])
        nodes += [first + 16 * i for i in range(count - 1)] + [0]
        tail = first + 16 * (count - 2) if count > 1 else 0xC008_0000_0000_0000 + 8 * gfn
        places += [first + 16 * i + 8 for i in range(count - 1)] + [tail]
        found += slots[gfn]
        heads.append(first if count > 1 else slots[gfn][0])
        start.append(len(found))
    return Rmaps(
        memslot=np.zeros(len(gfns), np.int64),
        gfn=addresses(gfns),
        where=addresses([0xC008_0000_0000_0000 + 8 * gfn for gfn in gfns]),
        head=addresses(heads),
        start=np.array(start, np.int64),
        word=addresses(found),
        node=addresses(nodes),
        place=addresses(places),
    )


MEMSLOTS = (
    Memslot(0xC000_0000_0002_0000, 0, 0, 1 << 30, 0, 0x7000_0000_0000, 0xC008_0000_0000_0000),
)


def snapshot_vm(state: VmState, memslots: tuple[Memslot, ...] = MEMSLOTS, number: int = 0) -> Vm:
    """Return the model's state of a VM in the form of a snapshot.

    VMs of different numbers share nothing.
    """
    apart = number << 32
    return Vm(
        address=0xC000_0000_0001_0000 + apart,
        lpid=1 + 100 * number,
        pid=1,
        radix=True,
        nesting=True,
        l1_ptcr=0,
        mmu_lock=0,
        locked=False,
        memslots=memslots,
        rmaps=rmaps_of(state.slots, 0xC000_0000_1000_0000 + apart),
        host=leaf_table(state.host, 0x1_0000 + apart),
        nested=tuple(
            Nested(
                address=0xC000_0000_0003_0000 + 0x1000 * lpid + apart,
                lpid=lpid,
                l1_lpid=lpid,
                shadow_lpid=2 + i + 100 * number,
                refcnt=1,
                l1_gr_to_hr=0,
                process_table=0,
                shadow_pgtable=0xC000_0000_0500_0000 + 0x1_0000 * lpid + apart,
                shadow=leaf_table(shadow, 0x10_0000 * (1 + i) + apart),
                l1=leaf_table(state.l1_tables[lpid]) if lpid in state.l1_tables else None,
            )
            for i, (lpid, shadow) in enumerate(sorted(state.shadows.items()))
        ),
        pgtable=0xC000_0000_0400_0000 + apart,
    )


def state_of(vm: Vm, page_shift: int) -> VmState:
    """Return a VM of a snapshot in the form of the model."""
    return VmState(
        page_shift,
        Table(leaves_of(vm.host)),
        {slot.gfn: tuple(slot.words.tolist()) for slot in vm.rmaps},
        {nested.lpid: Table(leaves_of(nested.shadow)) for nested in vm.nested},
        {nested.lpid: Table(leaves_of(nested.l1)) for nested in vm.nested if nested.l1 is not None},
    )


def _tables(regions: Sequence[int], shifts: Sequence[int]) -> st.SearchStrategy[Table]:
    """Return tables whose 2 MiB regions hold nothing, one huge leaf, or some small ones."""
    rows = st.tuples(
        st.sampled_from(list(regions)),
        st.sampled_from((*shifts, *shifts, HUGE)),
        PAGES,
        st.sampled_from(FRAMES),
        PAGES,
        st.sampled_from(BITS),
    )
    return st.lists(rows, max_size=6).map(_table_of)


def _table_of(rows: Sequence[tuple[int, int, int, int, int, int]]) -> Table:
    shifts: dict[int, int] = {}
    found = []
    for region, wanted, page, frame, frame_page, bits in rows:
        shift = shifts.setdefault(region, wanted)
        inside = (0, 0) if shift == HUGE else (page << shift, frame_page << shift)
        found.append(leaf((region << HUGE) + inside[0], (frame << HUGE) + inside[1], shift, bits))
    return table(*found)


@st.composite
def _slots(
    draw: st.DrawFn, page_shift: int, known: Sequence[tuple[int, int]], *, odd_bits: bool
) -> dict[int, tuple[int, ...]]:
    """Return slots whose entries are mostly ``known`` ones."""
    gfns = st.tuples(st.sampled_from(GFN_REGIONS), PAGES).map(
        lambda place: (place[0] << (HUGE - page_shift)) + place[1]
    )
    entries = st.sampled_from([*known, *known, (0, 0), (1, 0x1000), (4095, 1 << 33)])
    slots = {
        gfn: words(*found)
        for gfn, found in draw(
            st.dictionaries(gfns, st.lists(entries, max_size=5), max_size=5)
        ).items()
    }
    if odd_bits and draw(st.integers(0, 3)) == 0:
        noise = draw(st.sampled_from((encoding.RESERVED_MASK, 0x10)))
        slots = {gfn: tuple(word | noise for word in found) for gfn, found in slots.items()}
    return slots


@st.composite
def vm_states(
    draw: st.DrawFn,
    page_shift: int | None = None,
    *,
    odd_bits: bool = False,
    lpids: Sequence[int] = LPIDS,
) -> VmState:
    """Return a small VM in which entries of every state and leaves of every state are common.

    Slots hold any words: stale ones, duplicates, a zero word in the middle
    of a list, and reserved bits too if ``odd_bits`` is set.
    """
    if page_shift is None:
        page_shift = draw(st.sampled_from((12, 16)))
    tables = _tables(L2_REGIONS, (12, 16))
    shadows = draw(st.dictionaries(st.sampled_from(lpids), tables, max_size=3))
    known = [(lpid, address) for lpid, shadow in shadows.items() for address in shadow.leaves]
    return VmState(
        page_shift,
        draw(_tables(GFN_REGIONS, (page_shift,))),
        draw(_slots(page_shift, known, odd_bits=odd_bits)),
        shadows,
        draw(st.dictionaries(st.sampled_from(sorted(shadows)), tables)) if shadows else {},
    )


class _Row(NamedTuple):
    """The draw from which one shadow leaf of a made state is built."""

    lpid: int
    region: int
    gfn_region: int
    page: int
    huge: tuple[bool, bool]
    bits: tuple[int, int]
    aligned: bool


@st.composite
def made_states(draw: st.DrawFn) -> VmState:
    """Return a small VM whose shadow leaves are made of L1's and L0's, as the kernel would.

    Sizes and bits are random, though, so leaves may map more or permit more than they should.
    """
    page_shift = draw(st.sampled_from((12, 16)))
    state = VmState(page_shift, draw(_tables(GFN_REGIONS, (page_shift,))))
    rows = st.builds(
        _Row,
        st.sampled_from(LPIDS),
        st.sampled_from(L2_REGIONS),
        st.sampled_from(GFN_REGIONS),
        PAGES,
        st.tuples(st.booleans(), st.booleans()),
        st.tuples(st.sampled_from(BITS), st.sampled_from(BITS)),
        st.booleans(),
    )
    regions: dict[tuple[int, int], tuple[bool, bool]] = {}
    for row in draw(st.lists(rows, max_size=8)):
        huge = regions.setdefault((row.lpid, row.region), row.huge)
        _make(state, row, huge)
    return state


def _make(state: VmState, row: _Row, huge: tuple[bool, bool]) -> None:
    """Add L1's leaf, the shadow leaf and its entry, if L0 maps the page."""
    inside = row.page << state.page_shift
    l1_real = (row.gfn_region << HUGE) + inside
    host = state.host.at(l1_real)
    if host is None:
        return
    frames = (l1_real, host.translate(l1_real))
    made = []
    for frame, is_huge, bits in zip(frames, huge, row.bits, strict=True):
        shift = HUGE if is_huge else state.page_shift
        address = (row.region << HUGE) + (0 if is_huge else inside)
        made.append(leaf(address, frame >> shift << shift, shift, bits))
    l1, shadow = made
    state.l1_tables.setdefault(row.lpid, Table()).leaves[l1.address] = l1
    state.shadows.setdefault(row.lpid, Table()).leaves[shadow.address] = shadow
    gfn = (host.address if row.aligned else l1_real) >> state.page_shift
    state.slots[gfn] = words(
        *(encoding.decode(word) for word in state.slots.get(gfn, ())), (row.lpid, shadow.address)
    )
