"""One moment of a live machine: all that a snapshot needs, out of one stop.

Where memory can be read while the machine runs, that is done first: what the
walk reads is the plan of what to copy.  The machine is then stopped for one
copy, and the snapshot decoded from it after the machine has gone on.  What
decoding needs and the copy lacks, since the kernel has changed it meanwhile,
joins the plan, and the machine is stopped again.  Where the kernel is always
faster, or memory can be read in a stop only, the walk is done in the stop.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from inspector.errors import InspectorError
from inspector.image.profile import Profile
from inspector.kvm.collect import collect, held_locks, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.memory.direct import DirectMemory
from inspector.memory.live import LiveMachine
from inspector.memory.overlay import Overlay
from inspector.memory.ranges import Ranges
from inspector.memory.recording import RecordingMemory
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import KernelSpace

__all__ = ["LOCK_ATTEMPTS", "LOCK_PAUSE", "Again", "Moment", "take"]

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
"""Told of each stop that is made again."""


@dataclass(frozen=True)
class Moment:
    """A snapshot, what holds its bytes, and how often the machine was stopped for it.

    More than once where an ``mmu_lock`` was held, or a copy lacked something.
    """

    snapshot: Snapshot
    recorders: tuple[RecordingMemory, ...]
    attempts: int

    @property
    def memory(self) -> SegmentedMemory:
        """The bytes the snapshot was decoded from."""
        return RecordingMemory.joined(*self.recorders)

    @property
    def plan(self) -> Ranges:
        """What was read in the stop, which is what to copy for the next moment."""
        return self.recorders[-1].ranges().widened(PAGE)


def take(
    machine: LiveMachine,
    profile: Profile,
    noted: Noted = lambda why: None,
    plan: Ranges | None = None,
) -> Moment:
    """Take one moment in which no ``mmu_lock`` is held, if there is one.

    Args:
        machine: an attached machine.
        profile: its kernel.
        noted: told of each stop that is made again.
        plan: that of a moment shortly before, which saves looking beforehand.

    Raises:
        InspectorError: KVM cannot be inspected, or the machine not be read.
    """
    if isinstance(machine.memory, DirectMemory):
        return _copied(machine, machine.memory, profile, noted, plan)
    return _walked(machine, profile, noted)


def _walked(machine: LiveMachine, profile: Profile, noted: Noted) -> Moment:
    """Walk in the stop."""
    for attempt in itertools.count(1):
        record = RecordingMemory(machine.memory)
        kernel = KernelSpace(record, profile)
        with machine.stopped():
            vms = vm_list(kernel)
            if attempt >= LOCK_ATTEMPTS or not held_locks(kernel, vms):
                return Moment(collect(kernel, vms), (record,), attempt)
        noted(Again.LOCKED)
        time.sleep(LOCK_PAUSE)
    raise AssertionError


def _copied(
    machine: LiveMachine,
    memory: DirectMemory,
    profile: Profile,
    noted: Noted,
    plan: Ranges | None,
) -> Moment:
    """Look while the machine runs, and copy in the stop."""
    static = RecordingMemory(memory)
    vms = vm_list(KernelSpace(static, profile))
    if plan is None:
        plan = _seen(memory, profile, vms).ranges().widened(PAGE)
    lacking = 0
    for attempt in itertools.count(1):
        copier = memory.copier(plan)
        in_stop = lacking >= COPIES
        with machine.stopped():
            overlay = Overlay(copier(), memory)
            record = RecordingMemory(overlay)
            kernel = KernelSpace(record, profile)
            if in_stop and (attempt >= LOCK_ATTEMPTS or not held_locks(kernel, vms)):
                return Moment(collect(kernel, vms), (static, record), attempt)
        if attempt < LOCK_ATTEMPTS and held_locks(kernel, vms):
            noted(Again.LOCKED)
            time.sleep(LOCK_PAUSE)
            continue
        snapshot = collect(kernel, vms)
        if not overlay.missed:
            return Moment(snapshot, (static, record), attempt)
        noted(Again.LACKING)
        lacking += 1
        plan = plan.union(record.ranges().widened(PAGE))
    raise AssertionError


def _seen(memory: DirectMemory, profile: Profile, vms: int | None) -> RecordingMemory:
    """Walk while the machine runs; what is half way through a change leads anywhere."""
    record = RecordingMemory(memory)
    with contextlib.suppress(InspectorError):
        collect(KernelSpace(record, profile), vms)
    return record
