"""Reports for programs; the schemas are described in ``manual/json.md``.

Addresses and words are strings in hexadecimal, because many JSON parsers lose
bits of large numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

from inspector import hash_encoding
from inspector.checks.base import all_invariants
from inspector.checks.findings import DISAGREEMENT, Finding
from inspector.checks.verdict import NODE_SIZE, Basis, Judgement, VmJudgement
from inspector.kvm.snapshot import HashSlot, Memslot, Nested, PartitionEntry, Slot, Snapshot, Vm
from inspector.reports.text import hash_problems
from inspector.session import Acquired

__all__ = ["check_json", "finding_json", "rmap_json", "rmap_lines", "target_json", "vms_json"]


def target_json(acquired: Acquired) -> dict[str, Any]:
    """Return what is known of the target itself, in JSON form."""
    origin, snapshot = acquired.origin, acquired.snapshot
    return {
        "target": origin.target,
        "read_path": origin.read_path,
        "stopped_ms": None
        if origin.stopped_seconds is None
        else round(origin.stopped_seconds * 1000, 3),
        "stops": origin.stops,
        "stands": origin.found_stopped,
        "attempts": origin.attempts,
        "layout": origin.layout,
        "rejected": list(origin.rejected),
        "release": snapshot.release,
        "build_id": snapshot.build_id,
        "page_size": 1 << snapshot.page_shift,
        "facts": origin.facts or {},
    }


def check_json(acquired: Acquired, judgement: Judgement) -> dict[str, Any]:
    """Return the document of ``inspector check --json``."""
    return {
        "schema": "inspector.check/1",
        "target": target_json(acquired),
        "verdict": judgement.verdict.value,
        "notes": list(judgement.notes),
        "findings": [finding_json(finding) for finding in judgement.host_findings],
        "doubts": [finding_json(finding) for finding in judgement.host_doubts],
        "basis": _basis(judgement.basis),
        "vms": [_vm_judgement(vm) for vm in judgement.vms],
    }


def _basis(basis: Basis) -> dict[str, Any]:
    return {
        "words": basis.words,
        "confirmed": basis.confirmed,
        "kinds": [witness._asdict() for witness in basis.witnesses],
        "not_judged": [
            {"invariant": invariant, "what": item.what, "reason": item.why}
            for invariant, item in basis.unjudged
        ],
    }


def _vm_judgement(vm: VmJudgement) -> dict[str, Any]:
    counts = vm.counts
    return {
        "vm_lpid": vm.vm.lpid,
        "verdict": vm.verdict.value,
        "slots": counts.slots,
        "entries": counts.entries,
        "singles": counts.singles,
        "lists": counts.lists,
        "longest_list": counts.longest,
        "longest_lists": [{"gfn": f"{g:#x}", "entries": n} for g, n in counts.longest_lists],
        "list_nodes": {
            "count": counts.nodes,
            "bytes": counts.nodes * NODE_SIZE,
            "pages": counts.node_pages,
        },
        "live": counts.live,
        "stale": sum(counts.stale.values()),
        "stale_by_reason": {state.name.lower(): n for state, n in counts.stale.items()},
        "not_known": counts.unknown,
        "shadow_leaves": counts.shadow_leaves,
        "host_leaves": counts.host_leaves,
        "pending_invalidations": counts.pending,
        "notes": list(vm.notes),
        "findings": [finding_json(finding) for finding in vm.findings],
        "doubts": [finding_json(finding) for finding in vm.doubts],
        "basis": _basis(vm.basis),
        "pending": [
            {
                "invariant": item.invariant.id,
                "count": item.count,
                "examples": [finding_json(finding) for finding in item.examples],
            }
            for item in vm.pending
        ],
        "not_judged": [
            {
                "invariant": item.invariant.id,
                "part": None if item.gap.part is None else item.gap.part.name.lower(),
                "reason": item.gap.text,
                "in_part": item.at_all,
            }
            for item in vm.not_judged
        ],
    }


@cache
def _severities() -> dict[str, str]:
    known = {invariant.id: invariant.severity.value for invariant in all_invariants()}
    return known | {DISAGREEMENT: "tool"}


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return one finding in JSON form."""
    return {
        "invariant": finding.invariant,
        "severity": _severities()[finding.invariant],
        "summary": finding.summary,
        "expected": finding.expected,
        "doubt": finding.doubt or None,
        "evidence": [
            {
                "what": item.what,
                "space": item.space,
                "address": f"{item.address:#x}",
                "value": None if item.value is None else f"{item.value:#x}",
                "size": item.size,
                "meaning": item.meaning,
            }
            for item in finding.evidence
        ],
    }


def vms_json(acquired: Acquired) -> dict[str, Any]:
    """Return the document of ``inspector vms --json``."""
    return {
        "schema": "inspector.vms/1",
        "target": target_json(acquired),
        "vms": [_vm(vm) for vm in acquired.snapshot.vms],
        "unread": [gap.text for gap in acquired.snapshot.gaps],
    }


def _vm(vm: Vm) -> dict[str, Any]:
    return {
        "lpid": vm.lpid,
        "address": f"{vm.address:#x}",
        "pid": vm.pid,
        "mmu": "radix" if vm.radix else "hash",
        "nesting": vm.nesting,
        "l1_ptcr": f"{vm.l1_ptcr:#x}",
        "pgtable": f"{vm.pgtable:#x}",
        "partition_entry": _entry(vm.partition),
        "mmu_lock": f"{vm.mmu_lock:#x}",
        "mmu_lock_held": vm.locked,
        "memslots": [_memslot(slot) for slot in vm.memslots],
        "nested": [_nested(nested) for nested in vm.nested],
        "unread": [gap.text for gap in vm.gaps],
    }


def _entry(entry: PartitionEntry | None) -> str | None:
    return None if entry is None else f"{entry.dword:#x}"


def _memslot(slot: Memslot) -> dict[str, Any]:
    return {
        "id": slot.id,
        "address": f"{slot.address:#x}",
        "base_gfn": f"{slot.base_gfn:#x}",
        "npages": slot.npages,
        "flags": f"{slot.flags:#x}",
        "userspace_addr": f"{slot.userspace_addr:#x}",
        "rmap": f"{slot.rmap:#x}",
    }


def _nested(nested: Nested) -> dict[str, Any]:
    return {
        "lpid": nested.lpid,
        "address": f"{nested.address:#x}",
        "shadow_lpid": nested.shadow_lpid,
        "refcnt": nested.refcnt,
        "l1_gr_to_hr": f"{nested.l1_gr_to_hr:#x}",
        "process_table": f"{nested.process_table:#x}",
        "shadow_pgtable": f"{nested.shadow_pgtable:#x}",
        "partition_entry": _entry(nested.partition),
        "shadow_leaves": len(nested.shadow),
        "l1_leaves": None if nested.l1 is None else len(nested.l1),
    }


def rmap_json(acquired: Acquired, gfns: Collection[int] = ()) -> dict[str, Any]:
    """Return the document of ``inspector rmap --json``, of some L1 pages only if any are given."""
    return {
        "schema": "inspector.rmap/1",
        "target": target_json(acquired),
        "slots": list(rmap_lines(acquired.snapshot, gfns)),
        "unread": [gap.text for gap in acquired.snapshot.gaps],
    }


def rmap_lines(snapshot: Snapshot, gfns: Collection[int] = ()) -> Iterator[dict[str, Any]]:
    """Yield one object per non-empty slot, as ``inspector rmap --jsonl`` prints them."""
    for vm in snapshot.vms:
        for slot in vm.rmaps:
            if not gfns or slot.gfn in gfns:
                yield _slot(vm, slot, slot.words.tolist())
        for hashed in vm.hash_rmaps:
            if not gfns or hashed.gfn in gfns:
                yield _slot(vm, hashed, [hashed.word]) | {"hash": _hash_word(vm, hashed)}


def _slot(vm: Vm, slot: Slot | HashSlot, words: list[int]) -> dict[str, Any]:
    memslot = vm.memslots[slot.memslot]
    return {
        "vm_lpid": vm.lpid,
        "memslot": memslot.id,
        "base_gfn": f"{memslot.base_gfn:#x}",
        "gfn": f"{slot.gfn:#x}",
        "words": [f"{word:#x}" for word in words],
    }


def _hash_word(vm: Vm, slot: HashSlot) -> dict[str, Any]:
    word = hash_encoding.decode(slot.word)
    return {
        "present": word.index is not None,
        "referenced": word.referenced,
        "changed": word.changed,
        "locked": word.locked,
        "indices": [f"{index:#x}" for index in slot.indices.tolist()],
        "followed": vm.hash_rmaps.followed,
        "problems": hash_problems(slot),
    }
