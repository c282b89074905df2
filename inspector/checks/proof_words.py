"""Single words of a proof."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inspector.checks.findings import Evidence, Finding
from inspector.kvm.snapshot import Memslot, Nested, PartitionEntry, Vm
from inspector.structures.witness import Mismatch, Word

__all__ = ["entry_words", "member", "mismatch_findings", "shown_word"]

DWORD = 8
"""Bytes from the first doubleword of an entry to the second."""


def member(what: str, owner: Vm | Memslot | Nested, name: str, meaning: str = "") -> Evidence:
    """Return a member of a kernel structure as evidence."""
    value = int(getattr(owner, name))
    if name not in owner.places:
        return Evidence(f"{what}, its {name} {value:#x}", "kernel", owner.address, None, meaning)
    address, size = owner.places[name]
    return Evidence(f"{what}, {name}", "kernel", address, value, meaning, size)


def entry_words(entry: PartitionEntry | None) -> Iterator[Evidence]:
    """Yield the doublewords of a partition-table entry, if it was read."""
    if entry is not None:
        yield Evidence("dword 0", "physical", entry.where, entry.dword)
        if entry.second is not None:
            yield Evidence("dword 1", "physical", entry.where + DWORD, entry.second)


def mismatch_findings(
    invariant: str, vm_lpid: int | None, mismatches: Sequence[Mismatch]
) -> Iterator[Finding]:
    """Yield a finding for every mismatch that a walker met."""
    for one in mismatches:
        yield Finding(
            invariant=invariant,
            vm_lpid=vm_lpid,
            summary=one.summary,
            expected=one.expected,
            evidence=tuple(shown_word(word) for word in one.words),
            doubt=one.doubt,
        )


def shown_word(word: Word) -> Evidence:
    """Return a word that a walker read as evidence."""
    return Evidence(word.what, "kernel", word.address, word.value, "", word.size)
