"""Judge a snapshot: run every invariant over every VM and count."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from inspector import encoding
from inspector.checks.base import Finding, all_invariants
from inspector.checks.view import STATES, CheckedVm
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.model.vm import EntryState

__all__ = ["Counts", "Judgement", "Verdict", "VmJudgement", "judge"]


class Verdict(enum.Enum):
    """What can be said of a VM or of a whole target."""

    CONSISTENT = "consistent"
    VIOLATIONS = "violations"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Counts:
    """The numbers of one VM.

    ``stale`` counts entries by the reason they are, ``unknown`` those that
    may lead to something that could not be read.
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


@dataclass(frozen=True)
class VmJudgement:
    """The verdict on one VM, with its findings and what stands in the way of judging."""

    vm: Vm
    verdict: Verdict
    counts: Counts
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """The verdict on a snapshot."""

    snapshot: Snapshot
    vms: tuple[VmJudgement, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of any VM."""
        found = {vm.verdict for vm in self.vms}
        if self.snapshot.gaps:
            found.add(Verdict.INCONCLUSIVE)
        for verdict in (Verdict.VIOLATIONS, Verdict.INCONCLUSIVE):
            if verdict in found:
                return verdict
        return Verdict.CONSISTENT

    @property
    def notes(self) -> tuple[str, ...]:
        """What stands in the way of judging the host as a whole."""
        return tuple(f"not read: {gap.text}" for gap in self.snapshot.gaps)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of all VMs."""
        return tuple(finding for vm in self.vms for finding in vm.findings)


def judge(snapshot: Snapshot) -> Judgement:
    """Check every VM of a snapshot against every invariant."""
    return Judgement(snapshot, tuple(_judge(vm, snapshot.page_shift) for vm in snapshot.vms))


def _judge(vm: Vm, page_shift: int) -> VmJudgement:
    checked = CheckedVm(vm, page_shift)
    complete = not vm.radix or not any(gap.needed for gap in vm.gaps)
    half_way = vm.radix and vm.locked
    findings = tuple(
        finding
        for invariant in all_invariants()
        if complete or not invariant.by_absence
        for finding in invariant.find(checked)
    )
    counts = _counts(checked)
    notes = [gap.text for gap in vm.gaps]
    if not complete:
        notes.append("what could not be read may cover the shadow leaves, which are not judged")
    if not vm.radix:
        notes.append(
            f"hash-MMU guest: its {len(vm.hash_rmaps)} rmap words are of another kind "
            "(`inspector rmap` shows them) and it has no nested guests, so it is not checked"
        )
    elif not vm.nested and not len(vm.rmaps):
        notes.append("no nested guests" + ("" if vm.nesting else " (nesting is not enabled)"))
    if counts.pending:
        notes.append(
            f"{counts.pending} shadow leaves await an invalidation by L1, whose table has changed"
        )
    if half_way:
        notes.append(
            f"mmu_lock was held (word {vm.mmu_lock:#x}): lists and tables may be half way "
            "through a change, so nothing is concluded"
        )
    if half_way:
        verdict = Verdict.INCONCLUSIVE
    elif findings:
        verdict = Verdict.VIOLATIONS
    else:
        verdict = Verdict.CONSISTENT if complete else Verdict.INCONCLUSIVE
    return VmJudgement(vm, verdict, counts, findings, tuple(notes))


def _counts(checked: CheckedVm) -> Counts:
    rmaps = checked.rmaps
    length = rmaps.length
    by_state = np.bincount(checked.state[~checked.unknown], minlength=len(STATES))
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
        pending=sum(checked.pending(nested) for nested in checked.vm.nested),
    )
