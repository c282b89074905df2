"""Compare two snapshots.

State that could not be read on one side is not taken for gone: it is left out
of the comparison and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from inspector import encoding, pte
from inspector.checks.view import STATES, CheckedVm, leaf_at
from inspector.kvm.snapshot import HashSlot, Memslot, Nested, Part, Rmaps, Snapshot, Vm
from inspector.memory.numbers import U64, addresses
from inspector.questions.changes import (
    Change,
    Difference,
    FieldChange,
    HashChange,
    LeafChange,
    SlotChange,
    TableName,
    Turned,
    VmDifference,
)
from inspector.structures.radix import LeafTable

__all__ = ["difference", "leaves_made", "paired", "slot_changes"]

KEPT_BITS = np.uint64(~encoding.SINGLE_ENTRY & ((1 << 64) - 1))
"""All bits of an entry except bit 0, which only says whether the entry is in a list node."""

ALL_BITS = (1 << 64) - 1

VM_FIELDS = ("radix", "nesting", "l1_ptcr")
MEMSLOT_FIELDS = ("base_gfn", "npages", "flags", "userspace_addr")
NESTED_FIELDS = ("l1_lpid", "shadow_lpid", "refcnt", "l1_gr_to_hr", "process_table")

Owner = TypeVar("Owner", Memslot, Nested)


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """Compare two snapshots.

    Two VMs are taken for the same one if their address and process are equal
    or, among the remaining VMs, if their LPID and memslots are.
    """
    notes = []
    for name in ("release", "build_id", "page_shift"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            notes.append(f"the hosts differ in {name}: {old} before, {new} after")
    for when, snapshot in (("before", before), ("after", after)):
        notes += [f"not read {when}: {gap.text}" for gap in snapshot.gaps]
    if before.page_shift != after.page_shift:
        return Difference((), tuple(notes))
    pairs = paired(before.vms, after.vms)
    return Difference(tuple(_vm(old, new, before.page_shift) for old, new in pairs), tuple(notes))


def paired(before: Sequence[Vm], after: Sequence[Vm]) -> Iterator[tuple[Vm | None, Vm | None]]:
    """Yield pairs of VMs that are the same, in the order of the first side, None for no VM."""
    keys: tuple[Callable[[Vm], object], ...] = (
        lambda vm: (vm.address, vm.pid),
        lambda vm: (vm.lpid, frozenset((slot.base_gfn, slot.npages) for slot in vm.memslots)),
    )
    partner: dict[int, int] = {}
    for key in keys:
        for i, old in enumerate(before):
            for j, new in enumerate(after):
                if i not in partner and j not in partner.values() and key(old) == key(new):
                    partner[i] = j
    for i, old in enumerate(before):
        yield old, after[partner[i]] if i in partner else None
    for j, new in enumerate(after):
        if j not in partner.values():
            yield None, new


def _vm(old: Vm | None, new: Vm | None, page_shift: int) -> VmDifference:
    if old is None or new is None:
        return VmDifference(
            change=Change.CAME if old is None else Change.GONE, before=old, after=new
        )
    same_boot = (old.address, old.pid) == (new.address, new.pid)
    unknown = list(_unknown(old, new))
    return VmDifference(
        change=Change.KEPT,
        before=old,
        after=new,
        fields=tuple(_fields(old, new, same_boot=same_boot)),
        slots=tuple(slot_changes(old.rmaps, new.rmaps)),
        turned=tuple(_turned(CheckedVm(old, page_shift), CheckedVm(new, page_shift))),
        leaves=tuple(_leaves(old, new)),
        hashed=tuple(_hashed(old, new)),
        unknown=tuple(unknown),
    )


def _unknown(old: Vm, new: Vm) -> Iterator[str]:
    for when, vm in (("before", old), ("after", new)):
        if vm.locked:
            yield f"mmu_lock was held {when}: lists and tables may be half way through a change"
        for gap in vm.gaps:
            if gap.part is not Part.PARTITION:
                yield f"not read {when}: {gap.text}"


def _fields(old: Vm, new: Vm, *, same_boot: bool) -> Iterator[FieldChange]:
    yield from _members("VM", old, new, VM_FIELDS)
    memslots_whole = not any(gap.part is Part.MEMSLOTS for gap in (*old.gaps, *new.gaps))
    yield from _owners(
        "memslot",
        {slot.id: slot for slot in old.memslots},
        {slot.id: slot for slot in new.memslots},
        MEMSLOT_FIELDS,
        lambda key: memslots_whole,
    )
    # a guest that was released and made again has other addresses
    names = (*NESTED_FIELDS, "address", "shadow_pgtable") if same_boot else NESTED_FIELDS
    yield from _owners(
        "nested guest",
        {nested.lpid: nested for nested in old.nested},
        {nested.lpid: nested for nested in new.nested},
        names,
        lambda lpid: _guest_known(old, lpid) and _guest_known(new, lpid),
    )


def _guest_known(vm: Vm, lpid: int) -> bool:
    """Say whether it is known that a VM has a nested guest, or that it has none."""
    if any(nested.lpid == lpid for nested in vm.nested):
        return True
    return vm.unread_guests is not None and lpid not in vm.unread_guests


def _owners(
    what: str,
    old: dict[int, Owner],
    new: dict[int, Owner],
    names: Sequence[str],
    known: Callable[[int], bool],
) -> Iterator[FieldChange]:
    for key in sorted(old.keys() | new.keys()):
        owner = f"{what} {key}"
        if key in old and key in new:
            yield from _members(owner, old[key], new[key], names)
        elif known(key):
            yield FieldChange(owner, "", None, None, Change.GONE if key in old else Change.CAME)


def _members(owner: str, old: object, new: object, names: Sequence[str]) -> Iterator[FieldChange]:
    for name in names:
        before, after = int(getattr(old, name)), int(getattr(new, name))
        if before != after:
            yield FieldChange(owner, name, before, after)


def slot_changes(old: Rmaps, new: Rmaps) -> Iterator[SlotChange]:
    """Yield every slot whose entries are not the same, in order of their gfns."""
    if _alike(old, new):
        return
    # One row is one entry of either side.  Each group of equal (gfn, word) is summed up, with -1
    # for an entry of the old side and 1 for one of the new: what is left of it has gone or come.
    gfn = np.concatenate((old.gfn[old.slot], new.gfn[new.slot]))
    word = np.concatenate((old.word, new.word)) & KEPT_BITS
    sign = np.concatenate((np.full(old.word.size, -1), np.full(new.word.size, 1)))
    lacking = (*old.incomplete, *new.incomplete)
    known = ~_inside(gfn, lacking)
    gfn, word, sign = gfn[known], word[known], sign[known]
    order = np.lexsort((word, gfn))
    gfn, word, sign = gfn[order], word[order], sign[order]
    first = np.ones(gfn.size, dtype=np.bool_)
    first[1:] = (gfn[1:] != gfn[:-1]) | (word[1:] != word[:-1])
    begin = np.flatnonzero(first)
    balance = np.add.reduceat(sign, begin) if begin.size else sign
    differing = np.flatnonzero(balance)
    changes: dict[int, tuple[list[int], list[int]]] = {}
    for row in differing:
        place, count = int(begin[row]), int(balance[row])
        added, gone = changes.setdefault(int(gfn[place]), ([], []))
        (added if count > 0 else gone).extend([int(word[place])] * abs(count))
    for reordered in _reordered(old, new, changes.keys(), lacking):
        changes[reordered] = ([], [])
    lengths = [dict(zip(r.gfn.tolist(), r.length.tolist(), strict=True)) for r in (old, new)]
    for number in sorted(changes):
        before, after = (length.get(number, 0) for length in lengths)
        added, gone = changes[number]
        yield SlotChange(number, before, after, tuple(added), tuple(gone))


def _alike(old: Rmaps, new: Rmaps) -> bool:
    """Tell whether both sides have equal slots with equal entries, which is the usual case."""
    return (
        np.array_equal(old.gfn, new.gfn)
        and np.array_equal(old.start, new.start)
        and np.array_equal(old.word & KEPT_BITS, new.word & KEPT_BITS)
    )


def _inside(gfn: U64, ranges: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    inside = np.zeros(gfn.size, dtype=np.bool_)
    for first, pages in ranges:
        inside |= gfn - np.uint64(first) < np.uint64(pages)
    return inside


def _reordered(
    old: Rmaps, new: Rmaps, changed: Iterable[int], lacking: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the gfns of slots that hold the same entries in another order."""
    kept = addresses(np.setdiff1d(np.intersect1d(old.gfn, new.gfn), addresses(sorted(changed))))
    kept = kept[~_inside(kept, lacking)]
    rows = []
    for rmaps in (old, new):
        gfn = rmaps.gfn[rmaps.slot]
        inside = np.flatnonzero(np.isin(gfn, kept))
        # Sorted, because the order of memslots may differ between the sides; the sort is stable,
        # so the entries of a slot stay in list order.
        rows.append(
            (gfn[inside], rmaps.word[inside] & KEPT_BITS, np.argsort(gfn[inside], kind="stable"))
        )
    (gfn, words, order), (_, others, other_order) = rows
    differ = words[order] != others[other_order]
    return sorted({int(number) for number in gfn[order][differ]})


def _turned(old: CheckedVm, new: CheckedVm) -> Iterator[Turned]:
    """Yield the entries on both sides whose state has changed, if it is known on both."""
    sides = []
    for checked in (old, new):
        # one row for each (gfn, word), so that duplicates within a side are no pair below
        gfn = checked.rmaps.gfn[checked.slot_of]
        word = checked.rmaps.word & KEPT_BITS
        order = np.lexsort((word, gfn))
        first = np.ones(order.size, dtype=np.bool_)
        first[1:] = (gfn[order][1:] != gfn[order][:-1]) | (word[order][1:] != word[order][:-1])
        rows = order[first]
        sides.append((gfn[rows], word[rows], checked.state[rows], checked.unknown[rows]))
    (gfn_a, word_a, state_a, unknown_a), (gfn_b, word_b, state_b, unknown_b) = sides
    gfn = np.concatenate((gfn_a, gfn_b))
    word = np.concatenate((word_a, word_b))
    order = np.lexsort((word, gfn))
    same = (gfn[order][1:] == gfn[order][:-1]) & (word[order][1:] == word[order][:-1])
    at = np.flatnonzero(same)
    # Of two equal neighbours one is from each side; rows of the new side follow those of the old.
    one, two = np.minimum(order[at], order[at + 1]), np.maximum(order[at], order[at + 1])
    two = two - gfn_a.size
    differ = (state_a[one] != state_b[two]) & ~unknown_a[one] & ~unknown_b[two]
    for i, j in zip(one[differ], two[differ], strict=True):
        yield Turned(
            int(gfn_a[i]), int(word_a[i]), STATES[int(state_a[i])], STATES[int(state_b[j])]
        )


def _leaves(old: Vm, new: Vm) -> Iterator[LeafChange]:
    yield from _table(TableName.HOST, None, old.host, new.host)
    empty = LeafTable.empty()
    before = {nested.lpid: nested for nested in old.nested}
    after = {nested.lpid: nested for nested in new.nested}
    known = [
        lpid
        for lpid in sorted(before.keys() | after.keys())
        if _guest_known(old, lpid) and _guest_known(new, lpid)
    ]
    yield from chain.from_iterable(
        _table(
            TableName.SHADOW,
            lpid,
            before[lpid].shadow if lpid in before else empty,
            after[lpid].shadow if lpid in after else empty,
        )
        for lpid in known
    )
    for lpid in known:
        tables = [(side[lpid].l1 if lpid in side else None) or empty for side in (before, after)]
        yield from _table(TableName.L1, lpid, *tables)


def _table(
    name: TableName, lpid: int | None, old: LeafTable, new: LeafTable
) -> Iterator[LeafChange]:
    """Yield the leaves that differ; a leaf that the other side may hold unread is left out."""
    i, j, differ = _common(old, new)
    found = [(int(a), int(b)) for a, b in zip(i[differ], j[differ], strict=True)]
    if not new.has_holes:
        found += [(int(a), -1) for a in np.setdiff1d(np.arange(len(old)), i)]
    if not old.has_holes:
        found += [(-1, int(b)) for b in np.setdiff1d(np.arange(len(new)), j)]
    changes = []
    for a, b in found:
        before = leaf_at(old, a) if a >= 0 else None
        after = leaf_at(new, b) if b >= 0 else None
        address = (before or after).address  # type: ignore[union-attr]
        changes.append(LeafChange(name, lpid, address, before, after))
    yield from sorted(changes, key=lambda change: change.address)


def _common(
    old: LeafTable, new: LeafTable, bits: int = ALL_BITS
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows of both tables with equal addresses, and which differ in size or ``bits``."""
    _, i, j = np.intersect1d(old.address, new.address, return_indices=True)
    return (
        i,
        j,
        (((old.entry[i] ^ new.entry[j]) & np.uint64(bits)) != 0) | (old.shift[i] != new.shift[j]),
    )


def leaves_made(old: Vm, new: Vm) -> int:
    """Return how many shadow leaves of the later state are new, or changed since the earlier.

    A change of R and C alone does not count: hardware sets them, and ageing
    clears them.
    """
    empty = LeafTable.empty()
    before = {nested.lpid: nested.shadow for nested in old.nested}
    made = 0
    for nested in new.nested:
        if before.get(nested.lpid) is nested.shadow:
            continue
        _, there, differ = _common(
            before.get(nested.lpid, empty), nested.shadow, ALL_BITS & ~pte.RECORDED
        )
        made += len(nested.shadow) - there.size + int(np.count_nonzero(differ))
    return made


def _hashed(old: Vm, new: Vm) -> Iterator[HashChange]:
    before, after = ({slot.gfn: slot for slot in vm.hash_rmaps} for vm in (old, new))
    lost = (*old.hash_rmaps.unread, *new.hash_rmaps.unread)
    for gfn in sorted(before.keys() | after.keys()):
        one, two = before.get(gfn), after.get(gfn)
        if any(first <= gfn < first + pages for first, pages in lost):
            continue
        if one is None or two is None or _hash_key(one) != _hash_key(two):
            yield HashChange(gfn, one, two)


def _hash_key(slot: HashSlot) -> tuple[int, list[int]]:
    return slot.word, slot.indices.tolist()
