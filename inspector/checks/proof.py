"""The proof of a finding: every word on the way, so that a reader can check it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from inspector import encoding, pte
from inspector.checks.findings import Evidence, Finding, disagreement
from inspector.checks.rights import Rights
from inspector.checks.view import CheckedVm, Suspect
from inspector.kvm.snapshot import Nested
from inspector.model.rights import RightsJudgement, judge_rights
from inspector.model.vm import Leaf, LeafState
from inspector.structures.radix import LeafTable

__all__ = ["Told", "leaf_findings", "rights_findings"]

Told = Callable[[Leaf, RightsJudgement], tuple[str, str]]
"""Returns what is wrong with a leaf, and what was expected."""

SHOWN_ENTRIES = 8


def leaf_findings(
    checked: CheckedVm, invariant: str, states: tuple[LeafState, ...]
) -> Iterator[Finding]:
    """Yield a finding for every suspect leaf that the model puts into one of ``states``.

    If the model calls a suspect leaf covered, it contradicts the arrays.  Only
    the call that asks for ``LOST`` reports this.
    """
    for suspect in checked.suspects:
        if suspect.judgement.state is LeafState.COVERED and LeafState.LOST in states:
            yield _disagreement(checked, invariant, suspect)
        if suspect.judgement.state in states:
            leaf, nested = suspect.leaf, suspect.nested
            yield Finding(
                invariant=invariant,
                vm_lpid=checked.vm.lpid,
                summary=f"{_named(nested, leaf)}: {suspect.judgement.state.value}",
                expected=_expected(checked, suspect),
                evidence=tuple(_evidence(checked, suspect)),
            )


def rights_findings(
    checked: CheckedVm,
    invariant: str,
    rows: Callable[[Rights], NDArray[np.bool_]],
    told: Told,
) -> Iterator[Finding]:
    """Yield a finding for every covered leaf that, by the model, has more than it should.

    Args:
        checked: the VM.
        invariant: the identifier of the invariant.
        rows: chooses the leaves.
        told: returns what is wrong with such a leaf, and what was expected.
    """
    for nested, rights in zip(checked.vm.nested, checked.rights, strict=True):
        for row in np.flatnonzero(rows(rights)):
            suspect = checked.suspect(nested, int(row))
            judgement = judge_rights(checked.model, nested.lpid, suspect.leaf)
            if judgement is None:
                yield _disagreement(checked, invariant, suspect)
                continue
            summary, expected = told(suspect.leaf, judgement)
            yield Finding(
                invariant=invariant,
                vm_lpid=checked.vm.lpid,
                summary=f"{_named(nested, suspect.leaf)}: {summary}",
                expected=expected,
                evidence=tuple(_evidence(checked, suspect)),
            )


def _disagreement(checked: CheckedVm, invariant: str, suspect: Suspect) -> Finding:
    where = int(suspect.nested.shadow.where[suspect.row])
    evidence = Evidence("shadow entry", "physical", where, suspect.leaf.entry)
    of = f"the {_named(suspect.nested, suspect.leaf)}"
    return disagreement(invariant, checked.vm.lpid, of, evidence)


def _named(nested: Nested, leaf: Leaf) -> str:
    return (
        f"shadow leaf of L2 {nested.lpid}:{leaf.address:#x} "
        f"({pte.size_name(leaf.shift)} at host page {leaf.frame:#x})"
    )


def _expected(checked: CheckedVm, suspect: Suspect) -> str:
    judgement, leaf = suspect.judgement, suspect.leaf
    if judgement.expected is not None and judgement.state is LeafState.MOVED:
        return f"frame {judgement.expected:#x} = L0(L1({leaf.address:#x})) in the shadow entry"
    if judgement.state is LeafState.UNMAPPED:
        return "no shadow entry: L0 clears it together with its own leaf for the host page"
    if suspect.nested.lpid > encoding.MAX_LPID:
        return f"an LPID of 12 bits: no entry can name a guest with LPID {suspect.nested.lpid}"
    word = f"{encoding.encode(suspect.nested.lpid, leaf.address):#x}"
    ranges = " or ".join(_gfns(host, checked.page_shift) for host in judgement.backing)
    return f"an entry {word} (single bit aside) in a slot of gfn {ranges}, met by the kernel's walk"


def _evidence(checked: CheckedVm, suspect: Suspect) -> Iterator[Evidence]:
    nested, leaf, judgement = suspect.nested, suspect.leaf, suspect.judgement
    yield Evidence(
        "shadow entry",
        "physical",
        int(nested.shadow.where[suspect.row]),
        leaf.entry,
        pte.describe(leaf.entry, leaf.shift),
    )
    yield _asked("L1's entry", "L1", nested.l1, leaf.address, "L2")
    if judgement.l1 is not None:
        l1_address = judgement.l1.translate(leaf.address)
        yield _asked("L0's entry for it", "physical", checked.vm.host, l1_address, "L1")
    for host in judgement.backing:
        yield _asked(
            "L0's leaf that maps the host page", "physical", checked.vm.host, host.address, "L1"
        )
        yield from _consulted_slots(checked, host)
    shown = judgement.entries[:SHOWN_ENTRIES]
    for place in shown:
        slot = int(np.flatnonzero(checked.rmaps.gfn == np.uint64(place.gfn))[0])
        where = int(checked.rmaps.place[checked.rmaps.start[slot] + place.position])
        meaning = f"entry {place.position} of the slot of gfn {place.gfn:#x}"
        if not place.reachable:
            meaning += ", not met by the kernel's walk"
        yield Evidence("entry for it", "kernel", where, place.word, meaning)
    if not shown:
        yield Evidence("entry for it", "kernel", 0, None, "in no slot of this VM")


def _gfns(host: Leaf, page_shift: int) -> str:
    first, last = host.address >> page_shift, (host.address + host.size - 1) >> page_shift
    return f"{first:#x}" if first == last else f"{first:#x}..{last:#x}"


def _consulted_slots(checked: CheckedVm, host: Leaf) -> Iterator[Evidence]:
    """Yield the slots in use that L0 empties when it clears ``host``, or the first slot if none."""
    first = host.address >> checked.page_shift
    pages = max(1, host.size >> checked.page_shift)
    inside = checked.rmaps.gfn - np.uint64(first) < np.uint64(pages)
    rows = np.flatnonzero(inside)
    for row in rows[:SHOWN_ENTRIES]:
        slot = checked.rmaps[int(row)]
        count = len(slot.words)
        meaning = f"gfn {slot.gfn:#x}, {count} {'entry' if count == 1 else 'entries'}"
        yield Evidence("slot consulted for it", "kernel", slot.where, slot.head, meaning)
    if not rows.size:
        for memslot in checked.vm.memslots:
            if 0 <= first - memslot.base_gfn < memslot.npages:
                where = memslot.rmap + 8 * (first - memslot.base_gfn)
                yield Evidence(
                    "slot consulted for it", "kernel", where, 0, f"gfn {first:#x}, empty"
                )


def _asked(what: str, space: str, table: LeafTable | None, address: int, of: str) -> Evidence:
    if table is None:
        return Evidence(what, of, address, None, "there is no such table")
    index = int(table.find(np.array([address], dtype=np.uint64))[0])
    if index < 0:
        return Evidence(what, of, address, None, f"maps nothing at {of} {address:#x}")
    entry, shift = int(table.entry[index]), int(table.shift[index])
    meaning = f"{of} {int(table.address[index]):#x} -> {pte.describe(entry, shift)}"
    return Evidence(what, space, int(table.where[index]), entry, meaning)
