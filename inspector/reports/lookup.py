"""The report of ``inspector lookup``, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from inspector import encoding, pte
from inspector.model.vm import LeafState
from inspector.questions.parts import (
    Answer,
    HostPage,
    L1Page,
    L2Page,
    Mapping,
    RmapEntry,
    SlotView,
    TableEntry,
)
from inspector.reports.jsonform import finding_json, target_json
from inspector.reports.text import ENTRIES_SHOWN, finding_lines, opened, table
from inspector.session import Acquired

__all__ = ["lookup_json", "lookup_report"]


def lookup_report(acquired: Acquired, answer: Answer, *, everything: bool) -> Iterator[str]:
    """Yield the lines of ``inspector lookup``; long lists are cut unless ``everything`` is set."""
    yield from opened(acquired.snapshot, acquired.origin)
    yield ""
    yield answer.asked
    yield from (f"  {meaning}" for meaning in answer.meanings)
    if not (answer.l2_pages or answer.l1_pages or answer.host_pages or answer.meanings):
        yield "  nothing was found under it"
    for l2 in answer.l2_pages:
        yield ""
        yield from _l2_lines(l2)
    if answer.left_out:
        yield ""
        yield f"... and {answer.left_out} more L2 pages (--all shows them)"
    for l1 in answer.l1_pages:
        yield ""
        yield from _l1_lines(l1, everything=everything)
    for host in answer.host_pages:
        yield ""
        yield from _host_lines(host, everything=everything)
    for number, finding in enumerate(answer.findings, 1):
        yield ""
        yield from finding_lines(number, finding)
    if answer.notes:
        yield ""
    yield from (f"note: {note}" for note in answer.notes)


def _l2_lines(page: L2Page) -> Iterator[str]:
    at = f"L2 {page.lpid}:{page.address:#x}"
    yield f"VM lpid {page.vm}: {at} ({_size(page.size)})"
    yield from _indented(
        [
            _step("L1's table", at, "L1", page.l1_address, page.l1, "L1"),
            _step(
                "L0's table",
                "" if page.l1_address is None else f"L1 {page.l1_address:#x}",
                "host",
                page.host_address,
                page.host,
            ),
            _step("shadow table", at, "host", page.shadow_address, page.shadow),
        ]
    )
    yield f"  {_conclusion(page)}"
    if page.slot is not None:
        yield f"  its entry belongs to the slot of gfn {page.slot:#x}"
    for entry in page.entries:
        yield f"  entry {entry.position} of gfn {entry.gfn:#x}: {_entry_text(entry)}"
    if not page.entries:
        yield "  no entry names it"


def _conclusion(page: L2Page) -> str:
    if page.state is None and page.l1 is None:
        return "neither L1's table nor the shadow table maps it"
    if page.state is None:
        return "not in the shadow table: L2's next access to it is a fault that L0 handles"
    if page.state is not LeafState.COVERED:
        return f"shadow leaf not found again by L0: {page.state.value}"
    if page.agrees is None:
        return "L0 finds the shadow leaf again; L1's and L0's tables no longer lead there (pending)"
    if not page.agrees:
        return "L0 finds the shadow leaf again; L1's table now leads elsewhere (pending)"
    return "both ways lead to the same place, and L0 finds the shadow leaf again"


def _step(
    name: str,
    source: str,
    to: str,
    address: int | None,
    entry: TableEntry | None,
    space: str = "physical",
) -> Sequence[str]:
    if not source or entry is None or address is None:
        return (name, source, "maps nothing" if source else "not asked", "", "")
    return (name, source, f"-> {to} {address:#x}", *_entry_words(entry, space))


def _entry_words(entry: TableEntry, space: str = "physical") -> tuple[str, str]:
    leaf = entry.leaf
    flags = pte.permissions(leaf.entry) + pte.recorded(leaf.entry)
    return (
        f"{pte.size_name(leaf.shift)} {pte.level_name(leaf.shift)} {flags}",
        f"{leaf.entry:#018x} at {space} {entry.where:#x}",
    )


def _entry_text(entry: RmapEntry) -> str:
    at = f"node {entry.node:#x}" if entry.node else f"at kernel {entry.place:#x}"
    why = f" ({entry.why})" if entry.why else ""
    return f"{entry.word:#018x} {at}  {entry.mark.value}{why}"


def _l1_lines(page: L1Page, *, everything: bool) -> Iterator[str]:
    slot = "in no memslot" if page.memslot is None else f"memslot {page.memslot.id}"
    yield f"VM lpid {page.vm}: L1 page gfn {page.gfn:#x}, {slot}"
    source = f"L1 {page.address:#x}"
    yield from _indented([_step("L0's table", source, "host", page.host_address, page.host)])
    if not page.slots:
        yield "  no rmap slot for it was read"
    for view in page.slots:
        yield from _slot_lines(view, page, everything=everything)


def _slot_lines(view: SlotView, page: L1Page, *, everything: bool) -> Iterator[str]:
    count = len(view.entries)
    form = encoding.form_of(view.head).value + (f" of {count}" if count > 1 else "")
    yield (
        f"  slot of gfn {view.gfn:#x} at kernel {view.where:#x}: {view.head:#018x}, {form}"
        + (", the first of L0's huge page" if view.gfn != page.gfn else "")
        + "".join(f"; {finding.invariant}" for finding in view.findings)
    )
    shown = count if everything else min(count, ENTRIES_SHOWN)
    for entry in view.entries[:shown]:
        named = encoding.decode(entry.word)
        yield f"    L2 {named.lpid}:{named.gpa:#x}  {_entry_text(entry)}"
    if shown < count:
        yield f"    ... {count - shown} more (--all shows them)"


def _host_lines(page: HostPage, *, everything: bool) -> Iterator[str]:
    yield f"host page {page.address:#x}: " + (
        f"mapped by {len(page.mapped_by)} leaves" if page.mapped_by else "no VM maps it"
    )
    shown = page.mapped_by if everything else page.mapped_by[:ENTRIES_SHOWN]
    yield from _indented(
        [
            (
                f"VM lpid {mapping.vm}",
                _mapped(mapping),
                *_entry_words(mapping.entry),
            )
            for mapping in shown
        ]
    )
    if len(shown) < len(page.mapped_by):
        yield f"  ... {len(page.mapped_by) - len(shown)} more (--all shows them)"


def _mapped(mapping: Mapping) -> str:
    if mapping.lpid is None:
        return f"L0's table for L1 {mapping.address:#x}"
    return f"shadow table for L2 {mapping.lpid}:{mapping.address:#x}"


def _indented(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield from (f"  {line}" for line in list(table(("",) * len(rows[0]), rows))[1:])


def _size(size: int) -> str:
    return pte.size_name(size.bit_length() - 1)


def lookup_json(acquired: Acquired, answer: Answer) -> dict[str, Any]:
    """Return the document of ``inspector lookup --json``."""
    return {
        "schema": "inspector.lookup/1",
        "target": target_json(acquired),
        "asked": answer.asked,
        "meanings": list(answer.meanings),
        "l2_pages": [_l2_json(page) for page in answer.l2_pages],
        "l2_pages_left_out": answer.left_out,
        "l1_pages": [_l1_json(page) for page in answer.l1_pages],
        "host_pages": [
            {
                "address": f"{page.address:#x}",
                "mapped_by": [_mapping_json(mapping) for mapping in page.mapped_by],
            }
            for page in answer.host_pages
        ],
        "findings": [finding_json(finding) for finding in answer.findings],
        "notes": list(answer.notes),
    }


def _l2_json(page: L2Page) -> dict[str, Any]:
    return {
        "vm_lpid": page.vm,
        "lpid": page.lpid,
        "l2": f"{page.address:#x}",
        "size": page.size,
        "l1": _hex(page.l1_address),
        "host": _hex(page.host_address),
        "shadow_host": _hex(page.shadow_address),
        "l1_entry": _leaf_json(page.l1),
        "host_entry": _leaf_json(page.host),
        "shadow_entry": _leaf_json(page.shadow),
        "leaf_state": None if page.state is None else page.state.name.lower(),
        "agrees": page.agrees,
        "slot_gfn": _hex(page.slot),
        "entries": [_entry_json(entry) for entry in page.entries],
    }


def _l1_json(page: L1Page) -> dict[str, Any]:
    return {
        "vm_lpid": page.vm,
        "gfn": f"{page.gfn:#x}",
        "l1": f"{page.address:#x}",
        "memslot": None if page.memslot is None else page.memslot.id,
        "host": _hex(page.host_address),
        "host_entry": _leaf_json(page.host),
        "slots": [
            {
                "gfn": f"{view.gfn:#x}",
                "address": f"{view.where:#x}",
                "word": f"{view.head:#x}",
                "form": encoding.form_of(view.head).value,
                "entries": [_entry_json(entry) for entry in view.entries],
                "findings": [finding.invariant for finding in view.findings],
            }
            for view in page.slots
        ],
    }


def _entry_json(entry: RmapEntry) -> dict[str, Any]:
    named = encoding.decode(entry.word)
    return {
        "gfn": f"{entry.gfn:#x}",
        "position": entry.position,
        "word": f"{entry.word:#x}",
        "lpid": named.lpid,
        "l2": f"{named.gpa:#x}",
        "node": f"{entry.node:#x}" if entry.node else None,
        "address": f"{entry.place:#x}",
        "mark": entry.mark.name.lower(),
        "why": entry.why,
    }


def _leaf_json(entry: TableEntry | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    leaf = entry.leaf
    return {
        "from": f"{leaf.address:#x}",
        "to": f"{leaf.frame:#x}",
        "size": leaf.size,
        "level": pte.level_name(leaf.shift),
        "permissions": pte.permissions(leaf.entry),
        "recorded": pte.recorded(leaf.entry),
        "entry": f"{leaf.entry:#x}",
        "at": f"{entry.where:#x}",
    }


def _mapping_json(mapping: Mapping) -> dict[str, Any]:
    return {
        "vm_lpid": mapping.vm,
        "table": "host" if mapping.lpid is None else "shadow",
        "lpid": mapping.lpid,
        "address": f"{mapping.address:#x}",
        "entry": _leaf_json(mapping.entry),
    }


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"
