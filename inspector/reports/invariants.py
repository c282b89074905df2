"""The list of invariants, for people, for programs and for the manual."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from inspector.checks.base import EXPLAINING, Invariant
from inspector.checks.findings import Severity
from inspector.checks.verdict import EXAMPLES
from inspector.kvm.snapshot import Part
from inspector.model.vm import EntryState

__all__ = ["invariants_json", "invariants_page", "invariants_text"]

WIDTH = 100


def invariants_text(invariants: Sequence[Invariant]) -> Iterator[str]:
    """Yield the lines of ``inspector check --list``."""
    for invariant in invariants:
        yield f"{invariant.id}  ({invariant.severity.value})"
        yield f"  {invariant.statement}"
        yield f"  why: {invariant.why}"
        yield f"  kernel: {_source(invariant)}"
        yield f"  looks at: {_names(invariant.reads)}"
        if invariant.passing:
            yield f"  counted as pending: {invariant.passing.reason}"


def invariants_json(invariants: Sequence[Invariant]) -> dict[str, Any]:
    """Return the document of ``inspector check --list --json``."""
    return {
        "schema": "inspector.invariants/1",
        "severities": {one.value: one.meaning for one in Severity},
        "invariants": [
            {
                "id": invariant.id,
                "statement": invariant.statement,
                "why": invariant.why,
                "source": invariant.source,
                "commit": invariant.commit or None,
                "severity": invariant.severity.value,
                "reads": _members(invariant.reads),
                "needs": _members(invariant.needs),
                "pending": invariant.passing.reason if invariant.passing else None,
            }
            for invariant in invariants
        ],
    }


def invariants_page(invariants: Sequence[Invariant]) -> Iterator[str]:
    """Yield the lines of the manual's page, ``inspector check --list --markdown``."""
    yield "# Invariants"
    yield ""
    yield from _wrapped(
        "The statements that `inspector check` tests on every VM. Each must hold whenever the VM's "
        "`mmu_lock` is free. This page is what `inspector check --list --markdown` prints; "
        "a test checks that."
    )
    yield ""
    yield "| identifier | severity | breach |"
    yield "|---|---|---|"
    for invariant in invariants:
        breach = "pending" if invariant.passing else "violation"
        yield f"| [{invariant.id}](#{invariant.id}) | {invariant.severity.value} | {breach} |"
    yield ""
    yield "Severities:"
    yield ""
    for severity in Severity:
        yield from _wrapped(f"* *{severity.value}*: {severity.meaning}", "  ")
    yield ""
    yield from _wrapped(
        "A breach that is *pending* can be legal for a while. The places are counted, and do not "
        f"change the verdict; `--json` shows up to {EXAMPLES} of each with their proofs."
    )
    yield ""
    yield from _wrapped(
        "A part that an invariant looks at may be missing from a dump. The invariant is then "
        "judged on the rest or, if a missing part would look like a breach (*needed whole*), not "
        "at all; the report names both. The verdict is inconclusive if that happens to an "
        "invariant of memory safety. Two parts are not needed for a verdict: "
        + " and the ".join(part.value for part in Part if part in EXPLAINING)
        + ". The first lie in the guest's memory, which dumps leave out; a leaf that contradicts "
        "them and is dangerous is found without them. Captures of older versions do not have the "
        "second."
    )
    for invariant in invariants:
        yield ""
        yield f"## {invariant.id}"
        yield ""
        yield from _wrapped(invariant.statement)
        yield ""
        yield from _wrapped(invariant.why)
        yield ""
        yield from _wrapped(f"* severity: {invariant.severity.value}", "  ")
        yield from _wrapped(f"* kernel: {_source(invariant)}", "  ")
        yield from _wrapped(f"* looks at: {_names(invariant.reads)}", "  ")
        if invariant.needs:
            yield from _wrapped(f"* needed whole: {_names(invariant.needs)}", "  ")
        if invariant.passing:
            yield from _wrapped(f"* legal while: {invariant.passing.reason}", "  ")
    yield ""
    yield "## Stale entries"
    yield ""
    yield from _wrapped(
        "An rmap entry that leads nowhere is legal: KVM never removes a single entry. It breaks no "
        "invariant, and is counted by the reason:"
    )
    yield ""
    for state in EntryState:
        if state is not EntryState.LIVE:
            yield f"* {state.value}"


def _source(invariant: Invariant) -> str:
    commit = f'; commit "{invariant.commit}"' if invariant.commit else ""
    return invariant.source + commit


def _names(parts: frozenset[Part]) -> str:
    return ", ".join(part.value for part in Part if part in parts)


def _members(parts: frozenset[Part]) -> list[str]:
    return [part.name.lower() for part in Part if part in parts]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
