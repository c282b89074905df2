"""One moment of a live machine: all that a snapshot needs, out of one stop.

Where memory can be read while the machine runs, that is done first: what the
walk reads is the plan of what to copy.  The machine is then stopped for one
copy, and the snapshot decoded from it after the machine has gone on.  What
decoding needs and the copy lacks, since the kernel has changed it meanwhile,
joins the plan, and the machine is stopped again.  Where the kernel is always
faster, or memory can be read in a stop only, the walk is done in the stop.

What was decoded before of the very bytes that the copy has is not decoded
again: when it was looked beforehand, or for a moment shortly before, whose
plan is taken over, too.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from inspector.errors import InspectorError
from inspector.image.profile import Profile
from inspector.kvm.collect import collect, held_locks, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.live.direct import Copier, DirectMemory
from inspector.live.machine import LiveMachine
from inspector.memory.numbers import U64
from inspector.memory.overlay import Overlay
from inspector.memory.reads import RecordingMemory
from inspector.memory.results import Results
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import KernelSpace

__all__ = ["LOCK_ATTEMPTS", "Again", "Attempts", "Bequest", "Moment", "take"]

LOCK_ATTEMPTS = 20
LOCK_PAUSE = 0.005
"""Seconds the machine runs between two attempts to find ``mmu_lock`` free."""

COPIES = 4
"""So many copies may lack something; then the walk is done in the stop."""
PAGE = 1 << 12
"""Plans are made of such pages: beside a list's nodes is where new ones come to lie."""


class Again(enum.Enum):
    """Why a machine is stopped once more."""

    LOCKED = "mmu_lock held"
    LACKING = "more than was copied"


Noted = Callable[[Again], None]
"""Called once for every stop that has to be repeated."""


@dataclass(frozen=True)
class Moment:
    """A snapshot, what holds its bytes, and how often the machine was stopped for it.

    More than once where an ``mmu_lock`` was held, or a copy lacked something.
    """

    snapshot: Snapshot
    record: RecordingMemory
    attempts: int
    bequest: Bequest | None = None

    @property
    def memory(self) -> SegmentedMemory:
        """The bytes the snapshot was decoded from."""
        return self.record.freeze()


@dataclass(frozen=True)
class Bequest:
    """What was seen before: what to copy, what was made of it, and how to tell what has changed.

    ``seen`` is what was read while the machine ran, where there is no copy before.
    """

    copier: Copier
    results: Results
    seen: RecordingMemory | None = None

    def changed(self) -> U64:
        """Return the addresses of the words that are not in the copy as they were."""
        if self.seen is not None:
            return self.copier.departures(self.seen)
        return self.copier.changed()


def take(
    machine: LiveMachine,
    profile: Profile,
    noted: Noted = lambda why: None,
    before: Moment | None = None,
) -> Moment:
    """Take one moment in which no ``mmu_lock`` is held, if there is one.

    Args:
        machine: an attached machine.
        profile: its kernel.
        noted: called once for every stop that has to be repeated.
        before: a moment of the same machine shortly before, which makes it cheaper.

    Raises:
        InspectorError: KVM cannot be inspected, or the machine not be read.
    """
    if isinstance(machine.memory, DirectMemory):
        # on a machine that changes fast, looking anew is what saves stops
        known = before.bequest if before is not None and before.attempts == 1 else None
        return _copied(machine, machine.memory, profile, Attempts(noted), known)
    return _walked(machine, profile, Attempts(noted))


class Attempts:
    """The stops of a machine until no ``mmu_lock`` is held at one.

    Args:
        noted: called once for every stop that has to be repeated.
    """

    def __init__(self, noted: Noted = lambda why: None) -> None:
        self.number = 1
        self._noted = noted

    @property
    def last(self) -> bool:
        """Whether a lock that is held now is held at every stop, so that more would not help."""
        return self.number >= LOCK_ATTEMPTS

    def again(self, why: Again) -> None:
        """Begin the next one; if a lock was held, the machine runs for a while before it."""
        self._noted(why)
        if why is Again.LOCKED:
            time.sleep(LOCK_PAUSE)
        self.number += 1


def _walked(machine: LiveMachine, profile: Profile, attempts: Attempts) -> Moment:
    """Walk in the stop."""
    while True:
        record = RecordingMemory(machine.memory)
        kernel = KernelSpace(record, profile)
        with machine.stopped():
            vms = vm_list(kernel)
            if attempts.last or not held_locks(kernel, vms):
                return Moment(collect(kernel, vms), record, attempts.number)
        attempts.again(Again.LOCKED)


def _copied(
    machine: LiveMachine,
    memory: DirectMemory,
    profile: Profile,
    attempts: Attempts,
    known: Bequest | None,
) -> Moment:
    """Look while the machine runs, and copy in the stop."""
    known = known or _seen(memory, profile)
    copier = known.copier
    lacking = 0
    while True:
        overlay = Overlay(copier.memory, memory)
        record = RecordingMemory(overlay)
        kernel = KernelSpace(record, profile)
        in_stop = lacking >= COPIES
        with machine.stopped():
            copier.copy()
            if in_stop:
                vms = vm_list(kernel)
                if attempts.last or not held_locks(kernel, vms):
                    return Moment(collect(kernel, vms), record, attempts.number)
        results = Results(record)
        if known is not None:
            results = Results(record, known.results, known.changed())
        vms = results("vm_list", partial(vm_list, kernel))
        if not attempts.last and held_locks(kernel, vms):
            attempts.again(Again.LOCKED)
            continue
        snapshot = collect(kernel, vms, results)
        if not overlay.missed:
            copier.keep()
            return Moment(snapshot, record, attempts.number, Bequest(copier, results))
        attempts.again(Again.LACKING)
        lacking += 1
        known = None
        copier = memory.copier(copier.ranges.union(record.ranges().widened(PAGE)))


def _seen(memory: DirectMemory, profile: Profile) -> Bequest:
    """Walk while the machine runs; what is half way through a change leads anywhere."""
    record = RecordingMemory(memory)
    kernel = KernelSpace(record, profile)
    results = Results(record)
    with contextlib.suppress(InspectorError):
        collect(kernel, results("vm_list", partial(vm_list, kernel)), results)
    return Bequest(memory.copier(record.ranges().widened(PAGE)), results, record)
