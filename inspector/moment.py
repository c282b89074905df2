"""One moment of a live machine: all that a snapshot needs, from one stop.

If memory can be read while the machine runs, a first walk does so: the ranges
that it reads are the plan of what to copy.  The machine is then stopped for one
copy, and the snapshot is decoded from the copy after the machine has resumed.
If the kernel has changed its structures in the meantime, decoding needs ranges
that the copy does not have.  These ranges join the plan, and the machine is
stopped again.  If the kernel is always faster, or if memory can be read only in
a stop, the walk is done in the stop.

Decoded results are used again if the copy has the very bytes that they were
decoded from.  They come from the first walk, or from an earlier moment, whose
plan is used again too.
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
"""After so many incomplete copies, the walk is done in the stop."""
PAGE = 1 << 12
"""Bytes. Plans are widened to such pages, because new list nodes come to lie beside old ones."""


class Again(enum.Enum):
    """Why a machine has to be stopped once more."""

    LOCKED = "mmu_lock held"
    LACKING = "more than was copied"


Noted = Callable[[Again], None]
"""Called once for every stop that has to be repeated."""


@dataclass(frozen=True)
class Moment:
    """A snapshot, the record of its bytes, and how often the machine was stopped for it.

    ``attempts`` is above one if an ``mmu_lock`` was held or a copy was incomplete.
    ``bequest`` is None if the walk was done in the stop.
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
    """What an earlier walk leaves to the next: its plan, its results, and its bytes.

    ``seen`` is the record of a walk while the machine ran; after a moment it is
    None, because the copier has kept the copy.
    """

    copier: Copier
    results: Results
    seen: RecordingMemory | None = None

    def changed(self) -> U64:
        """Return the addresses of the words that are not in the new copy as they were before."""
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
        before: an earlier moment of the same machine, whose plan and results are used again.

    Raises:
        InspectorError: KVM cannot be inspected, or the machine cannot be read.
    """
    if isinstance(machine.memory, DirectMemory):
        # If the last moment took several stops, the machine changes fast: a new walk saves stops.
        known = before.bequest if before is not None and before.attempts == 1 else None
        return _copied(machine, machine.memory, profile, Attempts(noted), known)
    return _walked(machine, profile, Attempts(noted))


class Attempts:
    """Counts the stops of a machine until one of them finds no ``mmu_lock`` held.

    Args:
        noted: called once for every stop that has to be repeated.
    """

    def __init__(self, noted: Noted = lambda why: None) -> None:
        self.number = 1
        self._noted = noted

    @property
    def last(self) -> bool:
        """Whether this is the last attempt: further stops are unlikely to find the locks free."""
        return self.number >= LOCK_ATTEMPTS

    def again(self, why: Again) -> None:
        """Begin the next attempt; if a lock was held, let the machine run for a while first."""
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
    """Walk while the machine runs, and copy in the stop."""
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
            # While the machine is stopped, the memory below the copy still has the same state.
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
        # The next copy is of other ranges, so there is no earlier one to compare it with.
        known = None
        copier = memory.copier(copier.ranges.union(record.ranges().widened(PAGE)))


def _seen(memory: DirectMemory, profile: Profile) -> Bequest:
    """Walk while the machine runs.

    A structure that is half way through a change may lead anywhere, so an error
    only ends the walk: the ranges read so far are the plan.
    """
    record = RecordingMemory(memory)
    kernel = KernelSpace(record, profile)
    results = Results(record)
    with contextlib.suppress(InspectorError):
        collect(kernel, results("vm_list", partial(vm_list, kernel)), results)
    return Bequest(memory.copier(record.ranges().widened(PAGE)), results, record)
