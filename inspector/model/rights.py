"""What a shadow leaf may have: the size, permissions and R/C bits of the leaves it is made of.

A shadow leaf is made of L1's leaf and L0's (``__kvmhv_nested_page_fault``,
step 3).  L0's leaf may gain permissions while it exists, and never loses any:
instead, L0 clears it, and its shadow leaves with it.  L1's leaf may change at
any time, and L1 may invalidate later.

R and C may be wider for a while.  Hardware that sets them itself sets them in
the shadow leaf only.  And a fault may read L0's leaf before ageing or dirty
logging clears a bit there, and insert its shadow leaf afterwards.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

from inspector import pte
from inspector.model.vm import EntryState, Leaf, VmView, judge_entry

__all__ = ["Excess", "L1State", "RightsJudgement", "excess", "judge_rights", "misplaced"]


class Excess(NamedTuple):
    """What a leaf has that none of the leaves that it may be made of has.

    ``permissions`` and ``recorded`` are bits of a page-table entry;
    ``attributes`` says that its cache attribute or its PRIV bit differs from
    that of each of them.
    """

    larger: bool
    permissions: int
    attributes: bool
    recorded: int


class L1State(enum.Enum):
    """What L1's own table says of a shadow leaf that L0 finds."""

    AGREES = "L1's table leads there"
    UNKNOWN = "L1 has no table for the guest"
    UNMAPPED = "L1's table maps nothing there"
    ELSEWHERE = "L1's table leads to another host page"
    LARGER = "L1's leaf is smaller"
    WIDER = "L1's leaf permits less"


class RightsJudgement(NamedTuple):
    """The model's judgement of the rights of a covered shadow leaf.

    ``sources`` are L0's leaves in whose slots the kernel's walk meets a live
    entry for it; ``excess`` is what it has beyond them.  ``l1`` is L1's leaf,
    and ``l1_recorded`` are the R/C bits that the shadow leaf has and L1's leaf
    does not have, if the two agree otherwise.
    """

    sources: tuple[Leaf, ...]
    excess: Excess
    l1_state: L1State
    l1: Leaf | None
    l1_recorded: int


def excess(leaf: Leaf, sources: Sequence[Leaf]) -> Excess:
    """Return what a leaf has beyond all ``sources``, of which there must be at least one."""
    permissions = recorded = 0
    for source in sources:
        permissions |= source.entry & pte.PERMISSIONS
        recorded |= source.entry & pte.RECORDED
    return Excess(
        leaf.shift > max(source.shift for source in sources),
        leaf.entry & pte.PERMISSIONS & ~permissions,
        all((leaf.entry ^ source.entry) & pte.ATTRIBUTES for source in sources),
        leaf.entry & pte.RECORDED & ~recorded,
    )


def judge_rights(vm: VmView, lpid: int, leaf: Leaf) -> RightsJudgement | None:
    """Say what a shadow leaf has beyond what it is made of; None if L0 does not find it."""
    sources = []
    for place in vm.entries_for(lpid, leaf):
        if place.reachable and judge_entry(vm, place.gfn, place.word) is EntryState.LIVE:
            host = vm.host.at(place.gfn << vm.page_shift)
            if host is not None and host not in sources:
                sources.append(host)
    if not sources:
        return None
    state, l1 = _ask_l1(vm, lpid, leaf)
    recorded = 0
    if state is L1State.AGREES and l1 is not None:
        recorded = leaf.entry & pte.RECORDED & ~l1.entry
    return RightsJudgement(tuple(sources), excess(leaf, sources), state, l1, recorded)


def _ask_l1(vm: VmView, lpid: int, leaf: Leaf) -> tuple[L1State, Leaf | None]:
    table = vm.l1_table(lpid)
    if table is None:
        return L1State.UNKNOWN, None
    l1 = table.at(leaf.address)
    if l1 is None:
        return L1State.UNMAPPED, None
    l1_real = l1.translate(leaf.address)
    host = vm.host.at(l1_real)
    if host is None or host.translate(l1_real) != leaf.frame:
        return L1State.ELSEWHERE, l1
    if leaf.shift > l1.shift:
        return L1State.LARGER, l1
    if leaf.entry & pte.PERMISSIONS & ~l1.entry:
        return L1State.WIDER, l1
    return L1State.AGREES, l1


def misplaced(vm: VmView, gfn: int, word: int) -> int | None:
    """Return the gfn whose slot a live entry should be in; None if it is there or not live.

    An insertion aligns the gfn to L0's leaf, and ageing and dirty logging
    look into the slot of the leaf's first page only.
    """
    host = vm.host.at(gfn << vm.page_shift)
    if host is None or judge_entry(vm, gfn, word) is not EntryState.LIVE:
        return None
    first = host.address >> vm.page_shift
    return None if first >= gfn else first
