"""The reports of ``inspector diff``, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from inspector import encoding, pte
from inspector.errors import printable
from inspector.kvm.snapshot import HashSlot, Vm
from inspector.model.vm import EntryState, Leaf
from inspector.questions.changes import (
    Change,
    Difference,
    FieldChange,
    LeafChange,
    SlotChange,
    TableName,
    VmDifference,
)
from inspector.questions.expected import Departures, ExpectedVm, Unexpected
from inspector.reports.jsonform import target_json
from inspector.session import Acquired

__all__ = ["departures_json", "departures_report", "diff_json", "diff_report"]

SHOWN = 40
"""How many lines of one kind are shown."""

LARGE_MEMBERS = frozenset({"npages", "lpid", "refcnt", "shadow_lpid", "l1_lpid"})
"""Members that people read as decimal numbers."""


def diff_report(
    before: Acquired, after: Acquired, found: Difference, *, everything: bool
) -> Iterator[str]:
    """Yield the lines of ``inspector diff A B``; long parts are cut unless ``everything``."""
    for sign, acquired in (("-", before), ("+", after)):
        yield f"{sign} {_target(acquired)}"
    yield ""
    yield from (f"note: {printable(note)}" for note in found.notes)
    for vm in found.vms:
        yield from _vm_lines(vm, everything=everything)
    yield _conclusion(same=found.same, whole=found.whole)


def _target(acquired: Acquired) -> str:
    origin = acquired.origin
    stopped = (
        ""
        if origin.stopped_seconds is None
        else f", stopped for {origin.stopped_seconds * 1000:.1f} ms"
    )
    return (
        f"{printable(origin.target)}: Linux {printable(acquired.snapshot.release)}, "
        f"read from {origin.read_path}{stopped}"
    )


def _conclusion(*, same: bool, whole: bool) -> str:
    if not same:
        return "different"
    return "no difference" if whole else "no difference in what could be compared"


def _vm_lines(found: VmDifference, *, everything: bool) -> Iterator[str]:
    vm = found.vm
    if found.change is not Change.KEPT:
        sign, word = ("+", "new") if found.change is Change.CAME else ("-", "gone")
        yield f"{sign} VM lpid {vm.lpid} is {word}: {_contents(vm)}"
        yield ""
        return
    lines = [f"  note: {note}" for note in found.unknown]
    lines += [f"  {_field(change)}" for change in found.fields]
    lines += _cut(list(_slot_lines(found.slots)), everything=everything)
    lines += _turned_lines(found, everything=everything)
    for name in TableName:
        changes = [change for change in found.leaves if change.table is name]
        if changes:
            kinds = Counter(change.kind for change in changes)
            lines.append(
                f"  {name.value}: "
                + ", ".join(f"{count} {kind.value}" for kind, count in kinds.items())
            )
            lines += _cut([f"    {_leaf(change)}" for change in changes], everything=everything)
    lines += [
        f"  hash slot of gfn {change.gfn:#x}: {_hash(change.before)} -> {_hash(change.after)}"
        for change in found.hashed
    ]
    if lines:
        yield f"VM lpid {vm.lpid}:"
        yield from lines
        yield ""


def _contents(vm: Vm) -> str:
    return (
        f"{len(vm.memslots)} memslots, {len(vm.nested)} nested guests, {vm.rmaps.word.size} entries"
    )


def _field(change: FieldChange) -> str:
    if not change.name:
        return f"{'+' if change.change is Change.CAME else '-'} {change.owner}"
    values = [
        str(value) if change.name in LARGE_MEMBERS else f"{value or 0:#x}"
        for value in (change.before, change.after)
    ]
    return f"{change.owner}: {change.name} {values[0]} -> {values[1]}"


def _slot_lines(slots: Sequence[SlotChange]) -> Iterator[str]:
    if not slots:
        return
    added = sum(len(slot.added) for slot in slots)
    gone = sum(len(slot.gone) for slot in slots)
    yield f"  rmap: {_number(added, 'entry', 'entries')} added, {gone} gone, " + (
        f"in {_number(len(slots), 'slot', 'slots')}"
    )
    for slot in slots:
        how = "" if slot.added or slot.gone else ", in another order"
        yield f"    slot of gfn {slot.gfn:#x}: {slot.before} -> {slot.after} entries{how}"
        for sign, words in (("+", slot.added), ("-", slot.gone)):
            for word in words:
                entry = encoding.decode(word)
                yield f"      {sign} {word:#018x}  L2 {entry.lpid}:{entry.gpa:#x}"


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _turned_lines(found: VmDifference, *, everything: bool) -> list[str]:
    if not found.turned:
        return []
    stale = sum(turned.after is not EntryState.LIVE for turned in found.turned)
    lines = [f"  entries that stayed: {stale} now stale, {len(found.turned) - stale} now live"]
    rows = []
    for turned in found.turned:
        entry = encoding.decode(turned.word)
        rows.append(
            f"    gfn {turned.gfn:#x} {turned.word:#018x}  L2 {entry.lpid}:{entry.gpa:#x}: "
            f"{turned.before.value} -> {turned.after.value}"
        )
    return lines + _cut(rows, everything=everything)


def _cut(lines: list[str], *, everything: bool) -> list[str]:
    if everything or len(lines) <= SHOWN:
        return lines
    return [*lines[:SHOWN], f"    ... {len(lines) - SHOWN} more lines (--all shows them)"]


def _leaf(change: LeafChange) -> str:
    of = "L1" if change.lpid is None else f"L2 {change.lpid}:"
    place = f"{of} {change.address:#x}" if change.lpid is None else f"{of}{change.address:#x}"
    sides = " -> ".join(
        "nothing" if leaf is None else pte.describe(leaf.entry, leaf.shift)
        for leaf in (change.before, change.after)
    )
    return f"{place} {change.kind.value}: {sides}"


def _hash(slot: HashSlot | None) -> str:
    if slot is None:
        return "empty"
    indices = ", ".join(f"{int(index):#x}" for index in slot.indices)
    return f"{slot.word:#018x}" + (f" (HPT {indices})" if indices else "")


def diff_json(before: Acquired, after: Acquired, found: Difference) -> dict[str, Any]:
    """Return the document of ``inspector diff A B --json``."""
    return {
        "schema": "inspector.diff/1",
        "before": target_json(before),
        "after": target_json(after),
        "same": found.same,
        "whole": found.whole,
        "notes": list(found.notes),
        "vms": [_vm_json(vm) for vm in found.vms],
    }


def _vm_json(found: VmDifference) -> dict[str, Any]:
    return {
        "vm_lpid": found.vm.lpid,
        "change": found.change.value,
        "same": found.same,
        "not_compared": list(found.unknown),
        "fields": [
            {
                "owner": change.owner,
                "change": change.change.value,
                "name": change.name,
                "before": _hex(change.before),
                "after": _hex(change.after),
            }
            for change in found.fields
        ],
        "slots": [_slot_json(slot) for slot in found.slots],
        "turned": [
            {
                "gfn": f"{turned.gfn:#x}",
                "word": f"{turned.word:#x}",
                "before": turned.before.name.lower(),
                "after": turned.after.name.lower(),
            }
            for turned in found.turned
        ],
        "leaves": [
            {
                "table": change.table.name.lower(),
                "lpid": change.lpid,
                "address": f"{change.address:#x}",
                "kind": change.kind.name.lower(),
                "before": _leaf_json(change.before),
                "after": _leaf_json(change.after),
            }
            for change in found.leaves
        ],
        "hash_slots": [
            {
                "gfn": f"{change.gfn:#x}",
                "before": _hash_json(change.before),
                "after": _hash_json(change.after),
            }
            for change in found.hashed
        ],
    }


def _slot_json(slot: SlotChange) -> dict[str, Any]:
    return {
        "gfn": f"{slot.gfn:#x}",
        "length_before": slot.before,
        "length_after": slot.after,
        "added": [f"{word:#x}" for word in slot.added],
        "gone": [f"{word:#x}" for word in slot.gone],
    }


def _leaf_json(leaf: Leaf | None) -> dict[str, Any] | None:
    if leaf is None:
        return None
    return {"entry": f"{leaf.entry:#x}", "size": leaf.size, "frame": f"{leaf.frame:#x}"}


def _hash_json(slot: HashSlot | None) -> dict[str, Any] | None:
    if slot is None:
        return None
    return {
        "word": f"{slot.word:#x}",
        "indices": [f"{index:#x}" for index in slot.indices.tolist()],
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def departures_report(acquired: Acquired, found: Departures, *, everything: bool) -> Iterator[str]:
    """Yield the lines of ``inspector diff --expected``."""
    yield f"- {printable(found.expected.source)}: what is expected"
    yield f"+ {_target(acquired)}"
    yield ""
    yield from (f"note: {printable(note)}" for note in found.notes)
    for vm in found.vms:
        yield from _departure_lines(vm, everything=everything)
    same = found.same
    yield "as expected" if same and found.whole else _conclusion(same=same, whole=found.whole)


def _departure_lines(found: Unexpected, *, everything: bool) -> Iterator[str]:
    if found.vm is None:
        assert found.expected is not None
        yield f"- there is no VM with {_memslots(found.expected)}"
        yield ""
        return
    if found.expected is None:
        yield f"+ VM lpid {found.vm.lpid} was not expected: {_contents(found.vm)}"
        yield ""
        return
    lines = [f"  note: {note}" for note in found.unknown]
    lines += _cut(list(_slot_lines(found.slots)), everything=everything)
    for text, places in (("- no", found.missing), ("+", found.unexpected)):
        rows = [f"  {text} shadow leaf of L2 {lpid}:{address:#x}" for lpid, address in places]
        lines += _cut(rows, everything=everything)
    if lines:
        yield f"VM lpid {found.vm.lpid}:"
        yield from lines
        yield ""


def _memslots(vm: ExpectedVm) -> str:
    ranges = ", ".join(
        f"gfn {base:#x}..{base + pages - 1:#x}" + ("" if hva is None else f" at {hva:#x}")
        for base, pages, hva in vm.memslots
    )
    return f"memslots {ranges}" if ranges else "no memslots"


def departures_json(acquired: Acquired, found: Departures) -> dict[str, Any]:
    """Return the document of ``inspector diff --expected --json``."""
    return {
        "schema": "inspector.expected/1",
        "target": target_json(acquired),
        "expected": found.expected.source,
        "same": found.same,
        "whole": found.whole,
        "notes": list(found.notes),
        "vms": [
            {
                "vm_lpid": None if vm.vm is None else vm.vm.lpid,
                "expected": vm.expected is not None,
                "same": vm.same,
                "not_compared": list(vm.unknown),
                "slots": [_slot_json(slot) for slot in vm.slots],
                "missing_leaves": [f"{lpid}:{address:#x}" for lpid, address in vm.missing],
                "unexpected_leaves": [f"{lpid}:{address:#x}" for lpid, address in vm.unexpected],
            }
            for vm in found.vms
        ],
    }
