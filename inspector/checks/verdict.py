"""Judge a snapshot: run every invariant over every VM and count."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from inspector import encoding
from inspector.checks.base import EXPLAINING, Invariant, Passing, all_invariants
from inspector.checks.findings import DISAGREEMENT, Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.view import STATES, CheckedHost, CheckedVm
from inspector.kvm.snapshot import Gap, Snapshot, Vm
from inspector.memory.arrays import distinct
from inspector.model.vm import EntryState

__all__ = [
    "EXAMPLES",
    "NODE_SIZE",
    "Basis",
    "Counts",
    "Judgement",
    "NotJudged",
    "Pending",
    "Verdict",
    "VmJudgement",
    "counts_of",
    "judge",
]

NODE_SIZE = 16
"""Bytes of a ``struct rmap_nested``: a link and a word."""
LONGEST_LISTS = 5
EXAMPLES = 20
"""How many of the places where an invariant is legally broken are shown."""


class Verdict(enum.Enum):
    """What can be said of a VM or of a whole target."""

    CONSISTENT = "consistent"
    VIOLATIONS = "violations"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The numbers of one VM.

    ``stale`` counts the stale entries by reason, ``unknown`` the entries that
    may lead to something that could not be read.  ``nodes`` counts the nodes
    of all lists, ``node_pages`` the pages of kernel memory that hold them.
    ``longest_lists`` has gfn and number of entries of the longest lists: an
    insertion walks the whole list.
    """

    slots: int
    entries: int
    singles: int
    lists: int
    longest: int
    live: int
    stale: dict[EntryState, int]
    unknown: int
    shadow_leaves: int
    host_leaves: int
    pending: int
    nodes: int
    node_pages: int
    longest_lists: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pending:
    """An invariant that is legally broken in ``count`` places, with some of them as examples."""

    invariant: Invariant
    count: int
    examples: tuple[Finding, ...]


class NotJudged(NamedTuple):
    """An invariant not judged everywhere; ``at_all`` says whether it was judged anywhere."""

    invariant: Invariant
    gap: Gap
    at_all: bool


@dataclass(frozen=True)
class Basis:
    """What a verdict rests on.

    ``witnesses`` has one row for each kind of word.  ``unjudged`` has
    what could not be examined, each with the identifier of its invariant.
    """

    witnesses: tuple[Witness, ...] = ()
    unjudged: tuple[tuple[str, Unjudged], ...] = ()

    @property
    def words(self) -> int:
        """Number of words that were read."""
        return sum(witness.words for witness in self.witnesses)

    @property
    def confirmed(self) -> int:
        """Number of words that a second word confirms."""
        return sum(witness.confirmed for witness in self.witnesses)


@dataclass(frozen=True, kw_only=True)
class VmJudgement:
    """The verdict on one VM, with its findings and what could not be judged.

    ``doubts`` are findings that may be legal at this moment.
    """

    vm: Vm
    verdict: Verdict
    counts: Counts
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    pending: tuple[Pending, ...] = ()
    not_judged: tuple[NotJudged, ...] = ()
    doubts: tuple[Finding, ...] = ()
    basis: Basis = Basis()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict on a snapshot.

    ``host_findings``, ``host_doubts`` and ``host_basis`` are about state
    that belongs to no VM.  ``joins`` holds the joins of entries and leaves
    that the verdict was made of, for reports that count the same things.
    """

    snapshot: Snapshot
    joins: CheckedHost = field(repr=False, compare=False)
    vms: tuple[VmJudgement, ...]
    host_findings: tuple[Finding, ...] = ()
    host_doubts: tuple[Finding, ...] = ()
    host_basis: Basis = Basis()

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any VM and of the host as a whole."""
        found = {vm.verdict for vm in self.vms}
        if self.host_findings:
            found.add(Verdict.VIOLATIONS)
        if self.snapshot.gaps or self.host_doubts:
            found.add(Verdict.INCONCLUSIVE)
        for verdict in (Verdict.VIOLATIONS, Verdict.INCONCLUSIVE):
            if verdict in found:
                return verdict
        return Verdict.CONSISTENT

    @property
    def notes(self) -> tuple[str, ...]:
        """The gaps that prevent a judgement of the host as a whole."""
        return tuple(f"not read: {gap.text}" for gap in self.snapshot.gaps)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, those of the host before those of its VMs."""
        return (*self.host_findings, *(finding for vm in self.vms for finding in vm.findings))

    @property
    def basis(self) -> Basis:
        """What the verdict rests on: the sums over the host and all VMs, by kind of word."""
        every = (self.host_basis, *(vm.basis for vm in self.vms))
        return Basis(
            _summed(witness for basis in every for witness in basis.witnesses),
            tuple(dict.fromkeys(item for basis in every for item in basis.unjudged)),
        )


def _summed(witnesses: Iterable[Witness]) -> tuple[Witness, ...]:
    found: dict[tuple[str, str], Witness] = {}
    for one in witnesses:
        before = found.get((one.what, one.by))
        if before:
            words, confirmed = before.words + one.words, before.confirmed + one.confirmed
            one = one._replace(words=words, confirmed=confirmed)
        found[one.what, one.by] = one
    return tuple(found.values())


def judge(snapshot: Snapshot) -> Judgement:
    """Check the host and every VM of a snapshot against every invariant."""
    host = CheckedHost(snapshot)
    found: list[Finding] = []
    rests: list[tuple[Invariant, Rest]] = []
    for invariant in all_invariants():
        if invariant.find_host:
            found += invariant.find_host(host)
        if invariant.rests_host:
            rests += [(invariant, rest) for rest in invariant.rests_host(host)]
    findings, doubts = _sorted_out(found)
    return Judgement(
        snapshot=snapshot,
        joins=host,
        vms=tuple(_judge(checked) for checked in host.vms),
        host_findings=findings,
        host_doubts=doubts,
        host_basis=_basis(rests),
    )


def _sorted_out(found: Iterable[Finding]) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings that are violations, and those that may be legal."""
    every = tuple(found)
    return (
        tuple(finding for finding in every if not finding.doubt),
        tuple(finding for finding in every if finding.doubt),
    )


def _basis(rests: Iterable[tuple[Invariant, Rest]]) -> Basis:
    witnesses: list[Witness] = []
    unjudged: list[tuple[str, Unjudged]] = []
    for invariant, rest in rests:
        if isinstance(rest, Witness):
            witnesses.append(rest)
        else:
            unjudged.append((invariant.id, rest))
    return Basis(tuple(witnesses), tuple(unjudged))


def _judge(checked: CheckedVm) -> VmJudgement:
    vm = checked.vm
    half_way = vm.radix and vm.locked
    missing = {gap.part for gap in vm.gaps}
    judged = [invariant for invariant in all_invariants() if not invariant.needs & missing]
    findings, doubts = _sorted_out(
        finding
        for invariant in judged
        if not invariant.passing
        for finding in invariant.find(checked)
    )
    pending = tuple(
        _pending(checked, invariant, invariant.passing) for invariant in judged if invariant.passing
    )
    not_judged = tuple(
        NotJudged(invariant, gap, invariant in judged and not gap.whole)
        for gap in vm.gaps
        for invariant in all_invariants()
        if gap.part in invariant.reads
    )
    # Of the gaps, only those in parts that a memory-safety invariant reads rule out CONSISTENT.
    complete = not any(
        item.invariant.severity is Severity.MEMORY_SAFETY and item.gap.part not in EXPLAINING
        for item in not_judged
    )
    counts = counts_of(checked)
    notes = [gap.text for gap in vm.gaps if gap.part is None]
    if not vm.radix:
        notes.append(
            f"hash-MMU guest: its {len(vm.hash_rmaps)} rmap words are of another kind "
            "(`inspector rmap` shows them); the check covers these words, their rings of HPT "
            "entries, its memslots, and that it has no nested guests"
        )
    elif not vm.nested and not len(vm.rmaps):
        notes.append("no nested guests" + ("" if vm.nesting else " (nesting is not enabled)"))
    if half_way:
        notes.append(
            f"mmu_lock was held (word {vm.mmu_lock:#x}): lists and tables may be half way "
            "through a change, so nothing is concluded"
        )
    # A contradiction within this tool is no violation, but nothing can be concluded from it.
    contradictory = [one for one in findings if one.invariant == DISAGREEMENT]
    if half_way:
        verdict = Verdict.INCONCLUSIVE
    elif len(findings) > len(contradictory):
        verdict = Verdict.VIOLATIONS
    elif contradictory:
        verdict = Verdict.INCONCLUSIVE
    else:
        whole = complete and not doubts
        verdict = Verdict.CONSISTENT if whole else Verdict.INCONCLUSIVE
    return VmJudgement(
        vm=vm,
        verdict=verdict,
        counts=counts,
        findings=findings,
        notes=tuple(notes),
        pending=tuple(item for item in pending if item.count),
        not_judged=not_judged,
        doubts=doubts,
        basis=_basis(
            (invariant, rest)
            for invariant in all_invariants()
            if invariant.rests
            for rest in invariant.rests(checked)
        ),
    )


def _pending(checked: CheckedVm, invariant: Invariant, passing: Passing) -> Pending:
    count = passing.count(checked)
    examples = itertools.islice(invariant.find(checked), EXAMPLES) if count else ()
    return Pending(invariant, count, tuple(examples))


def counts_of(checked: CheckedVm) -> Counts:
    """Count the slots, entries, nodes and leaves of a VM."""
    rmaps = checked.rmaps
    length = rmaps.length
    # -1 is the code of no state: entries whose state is not known are counted by themselves.
    state = np.where(checked.unknown, np.int8(-1), checked.state)
    by_state = [np.count_nonzero(state == code) for code in range(len(STATES))]
    single = encoding.is_single(rmaps.head) != 0
    return Counts(
        slots=len(rmaps),
        entries=rmaps.word.size,
        singles=int(np.count_nonzero(single)),
        lists=int(np.count_nonzero(~single)),
        longest=int(length.max()) if length.size else 0,
        live=int(by_state[STATES.index(EntryState.LIVE)]),
        stale={
            state: int(count)
            for state, count in zip(STATES, by_state, strict=True)
            if state is not EntryState.LIVE and count
        },
        unknown=int(np.count_nonzero(checked.unknown)),
        shadow_leaves=sum(len(nested.shadow) for nested in checked.vm.nested),
        host_leaves=len(checked.vm.host),
        pending=checked.pending,
        nodes=int(np.count_nonzero(rmaps.node)),
        node_pages=_pages_of_nodes(checked),
        longest_lists=_longest_lists(checked),
    )


def _longest_lists(checked: CheckedVm) -> tuple[tuple[int, int], ...]:
    rmaps = checked.rmaps
    lists = np.flatnonzero(encoding.is_single(rmaps.head) == 0)
    length = rmaps.length[lists]
    if length.size > LONGEST_LISTS:
        # Selects the longest without a full sort: all that are longer than the shortest of them,
        # then as many of its length as there is room for.
        least = np.partition(length, -LONGEST_LISTS)[-LONGEST_LISTS]
        above = np.flatnonzero(length > least)
        equal = np.flatnonzero(length == least)[: LONGEST_LISTS - above.size]
        kept = np.concatenate((above, equal))
        lists, length = lists[kept], length[kept]
    order = np.argsort(-length, kind="stable")
    return tuple(zip(rmaps.gfn[lists[order]].tolist(), length[order].tolist(), strict=True))


def _pages_of_nodes(checked: CheckedVm) -> int:
    nodes = checked.rmaps.node
    return distinct(nodes[nodes != 0] >> np.uint64(checked.page_shift)).size
