"""Watch a live machine: one moment after the other, over one attachment.

The kernel is described once, and every sample is a moment of its own (see
``inspector.moment``): the machine is stopped for one copy and runs in between.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from inspector.checks.verdict import Counts, counts_of
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.moment import Moment, take
from inspector.options import Options
from inspector.progress import Doing, Progress, untold
from inspector.questions.difference import leaves_made, paired, slot_changes
from inspector.session import attached

__all__ = ["LONGEST", "List", "Pace", "Sample", "VmSample", "sampled", "watch"]

LONGEST = 5
"""How many of the longest lists a sample names."""


@dataclass(frozen=True)
class Pace:
    """How often to sample (``rate`` per second), and when to end (``count``, ``seconds``)."""

    rate: float = 1.0
    count: int | None = None
    seconds: float | None = None


class List(NamedTuple):
    """A slot with more than one entry."""

    gfn: int
    entries: int


@dataclass(frozen=True, kw_only=True)
class VmSample:
    """One VM in one sample.

    ``added``, ``gone`` and ``leaves`` count the changes since the sample before:
    entries inserted, entries removed, and shadow leaves that are new or changed.
    They and the rate are None if there is no sample before.  Every new or changed
    leaf takes at least one nested page fault, so ``faults_per_second`` is a lower
    bound.  ``unread`` counts the gaps of the VM.
    """

    lpid: int
    address: int
    locked: bool
    nested: int
    counts: Counts
    longest: tuple[List, ...]
    added: int | None = None
    gone: int | None = None
    leaves: int | None = None
    faults_per_second: float | None = None
    unread: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The VMs at one moment.

    ``seconds`` is the time since the first sample began; ``stopped_seconds`` is
    how long the machine was stopped for this sample, in ``stops`` stops;
    ``took_seconds`` is how long reading and decoding took.
    """

    number: int
    time: datetime
    seconds: float
    stopped_seconds: float
    stops: int
    took_seconds: float
    vms: tuple[VmSample, ...]
    notes: tuple[str, ...]
    target: str
    release: str
    read_path: str


def watch(
    target: str, options: Options, pace: Pace, progress: Progress = untold
) -> Generator[Sample]:
    """Yield one sample after the other.

    A generator that is not exhausted has to be closed, which detaches.

    Raises:
        InspectorError: the target cannot be attached to or inspected, or has ended.
    """
    with attached(target, options, progress) as attachment:
        machine, profile = attachment.machine, attachment.known.profile
        progress(Doing.READING, "")
        began = due = time.monotonic()
        before: tuple[float, Snapshot, tuple[VmSample, ...]] | None = None
        moment: Moment | None = None
        for number in itertools.count():
            time.sleep(max(0.0, due - time.monotonic()))
            at = time.monotonic()
            if number == pace.count or _over(pace, number, at - began):
                return
            # Samples that were missed are not made up for.
            due = max(due, at - 1 / pace.rate) + 1 / pace.rate
            stops = len(machine.stops)
            moment = take(machine, profile, before=moment)
            snapshot = moment.snapshot
            then, earlier, counted = before or (at, None, ())
            vms = sampled(snapshot, earlier, at - then, counted)
            yield Sample(
                number=number,
                time=datetime.now(UTC),
                seconds=at - began,
                stopped_seconds=sum(machine.stops[stops:]),
                stops=len(machine.stops) - stops,
                took_seconds=time.monotonic() - at,
                vms=vms,
                notes=tuple(f"not read: {gap.text}" for gap in snapshot.gaps),
                target=target,
                release=snapshot.release,
                read_path=machine.read_path,
            )
            before = at, snapshot, vms


def _over(pace: Pace, number: int, seconds: float) -> bool:
    return pace.seconds is not None and number > 0 and seconds > pace.seconds


def sampled(
    snapshot: Snapshot,
    before: Snapshot | None,
    apart: float,
    earlier: Sequence[VmSample] = (),
) -> tuple[VmSample, ...]:
    """Count the entries and leaves of each VM, and the changes since an earlier snapshot.

    Args:
        snapshot: the later snapshot.
        before: the earlier snapshot, if there is one.
        apart: seconds between the two.
        earlier: the samples of the earlier snapshot, for the VMs that have not changed.
    """
    pairs = paired(before.vms, snapshot.vms) if before else ((None, vm) for vm in snapshot.vms)
    known = {sample.address: sample for sample in earlier}
    # If none of a VM's bytes has changed, decoding gives the same object again.
    return tuple(
        _unchanged(known[new.address])
        if new is old and new.address in known
        else _vm(old, new, snapshot.page_shift, apart)
        for old, new in pairs
        if new is not None
    )


def _unchanged(sample: VmSample) -> VmSample:
    return replace(sample, added=0, gone=0, leaves=0, faults_per_second=0.0)


def _vm(old: Vm | None, new: Vm, page_shift: int, apart: float) -> VmSample:
    rmaps = new.rmaps
    order = np.argsort(-rmaps.length, kind="stable")[:LONGEST]
    longest = tuple(
        List(int(rmaps.gfn[i]), int(rmaps.length[i])) for i in order if rmaps.length[i] > 1
    )
    sample = VmSample(
        lpid=new.lpid,
        address=new.address,
        locked=new.locked,
        nested=len(new.nested),
        counts=counts_of(CheckedVm(new, page_shift)),
        longest=longest,
        unread=len(new.gaps),
    )
    if old is None:
        return sample
    changes = list(slot_changes(old.rmaps, rmaps))
    leaves = leaves_made(old, new)
    return replace(
        sample,
        added=sum(len(change.added) for change in changes),
        gone=sum(len(change.gone) for change in changes),
        leaves=leaves,
        faults_per_second=leaves / apart if apart > 0 else None,
    )
