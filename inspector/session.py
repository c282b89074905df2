"""From a target to a snapshot.

A target is ``gdb:HOST:PORT``, a file, ``split:FILE,FILE,...`` or
``raw:FILE@0xADDRESS``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from inspector.capture import Capture, read_capture
from inspector.dumps.formats import PREFIXES, Dump, open_dump
from inspector.errors import BadData, InspectorError, Stage, TargetNotSupported
from inspector.image.profile import Profile
from inspector.kernel.choose import DescribedKernel, describe_kernel
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.live.ahead import LIVE_PREFIX, address_of
from inspector.live.machine import LiveMachine
from inspector.live.served import SERVED_PREFIX, open_served
from inspector.memory.interface import AddressSpace
from inspector.memory.reads import RecordingMemory
from inspector.memory.segments import SegmentedMemory
from inspector.moment import take
from inspector.options import Options
from inspector.progress import Doing, Progress, untold
from inspector.structures.space import KernelSpace

__all__ = [
    "Acquired",
    "Attachment",
    "Origin",
    "acquire",
    "attached",
    "dump_of",
    "kernel_of",
]

SHOWN = 300
"""Characters of a target's name that an error message repeats."""
LIKE_A_PORT = re.compile(r"[^:/]*:\d+$")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a snapshot comes from.

    ``stopped_seconds`` and ``stops`` say how long, and how often, a live
    machine was stopped; ``attempts`` how often it was copied until no
    ``mmu_lock`` was held and the copy was complete.  ``facts`` are the facts that
    a capture carries.  ``found_stopped`` says that the machine was already stopped
    when it was found, and still is.  ``vmcoreinfo`` says whether a dump carries the
    kernel's VMCOREINFO.  ``layout`` says what described the kernel, and
    ``rejected`` which other kernels were found and why they are not the host's.
    """

    target: str
    read_path: str
    stopped_seconds: float | None = None
    stops: int = 0
    attempts: int = 0
    facts: dict[str, str] | None = None
    layout: str = ""
    rejected: tuple[str, ...] = ()
    found_stopped: bool = False
    vmcoreinfo: bool = False


@dataclass(frozen=True)
class Acquired:
    """A snapshot, where it comes from, and how to get the bytes it was decoded from."""

    snapshot: Snapshot
    profile: Profile
    origin: Origin
    recall: Callable[[], SegmentedMemory]

    @cached_property
    def memory(self) -> SegmentedMemory:
        """The bytes that were read for the snapshot, and no others."""
        return self.recall()


def acquire(target: str, options: Options, progress: Progress = untold) -> Acquired:
    """Open a target and collect its snapshot.

    Raises:
        InspectorError: the target cannot be opened or inspected.
    """
    if target.startswith(LIVE_PREFIX):
        return _live(target, options, progress)
    return _file(target, options, progress)


def kernel_of(target: str, options: Options, progress: Progress = untold) -> DescribedKernel:
    """Open a target and describe its kernel, and nothing else.

    Raises:
        InspectorError: the target cannot be opened or its kernel not described.
    """
    if target.startswith(LIVE_PREFIX):
        with attached(target, options, progress) as attachment:
            return attachment.known
    dump = dump_of(target)
    with _what_lacks_is_said(dump):
        return _kernel_of_dump(dump, options, progress)[0]


def dump_of(target: str) -> Dump:
    """Open the dump that a target names; only its headers are read.

    A stopped machine that a GDB lends is read like a dump.

    Raises:
        InspectorError: there is no such dump, or it cannot be opened.
    """
    if target.startswith(SERVED_PREFIX):
        lender, memory = open_served(target)
        return Dump(memory=memory, kind=lender)
    if not target.startswith(PREFIXES) and not os.path.exists(target):
        meant = LIKE_A_PORT.search(target)
        live = LIVE_PREFIX + (meant[0] if meant else "HOST:PORT")
        shown = target if len(target) <= SHOWN else f"{target[:SHOWN]}..."
        raise BadData(f"there is no file '{shown}'; a live machine is given as {live}")
    return open_dump(target)


@contextmanager
def _what_lacks_is_said(dump: Dump) -> Iterator[None]:
    """Blame an error in a block on the parts that a dump is missing, if it is incomplete."""
    try:
        yield
    except InspectorError as error:
        if dump.lacks:
            raise TargetNotSupported(f"{dump.lacks} ({error})", Stage.FORMAT) from error
        raise


def _kernel_of_dump(
    dump: Dump, options: Options, progress: Progress
) -> tuple[DescribedKernel, Capture | None]:
    capture = read_capture(dump.core) if dump.core else None
    if capture is not None:
        return DescribedKernel(capture.profile, "the capture"), capture
    progress(Doing.DESCRIBING, "")
    return describe_kernel(dump.memory, options, dump.vmcoreinfo or ""), None


def _file(target: str, options: Options, progress: Progress) -> Acquired:
    progress(Doing.OPENING, "")
    dump = dump_of(target)
    with _what_lacks_is_said(dump):
        known, capture = _kernel_of_dump(dump, options, progress)
        progress(Doing.DECODING, "")
        # An ELF core cannot say which memory was unreadable; the capture note inside it can.
        memory = dump.memory if capture is None else capture.memory
        snapshot = _walked(memory, known.profile)
    facts = capture.facts if capture else None
    kind = dump.kind if capture is None else "a capture"
    origin = Origin(
        target=target,
        read_path=kind,
        facts=facts,
        layout=known.source,
        rejected=known.rejected,
        vmcoreinfo=dump.vmcoreinfo is not None,
    )

    # Only a capture needs the bytes, so a second walk records them when they are asked for.
    def walked_again() -> SegmentedMemory:
        recorder = RecordingMemory(memory)
        _walked(recorder, known.profile)
        return recorder.freeze()

    return Acquired(snapshot, known.profile, origin, walked_again)


def _walked(memory: AddressSpace, profile: Profile) -> Snapshot:
    kernel = KernelSpace(memory, profile)
    return collect(kernel, vm_list(kernel))


def _live(target: str, options: Options, progress: Progress) -> Acquired:
    with attached(target, options, progress) as attachment:
        return attachment.inspect(progress)


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """An attached live machine and its kernel."""

    target: str
    machine: LiveMachine
    known: DescribedKernel

    def inspect(self, progress: Progress = untold) -> Acquired:
        """Collect the snapshot of one moment."""
        progress(Doing.READING, "")
        moment = take(self.machine, self.known.profile)
        origin = Origin(
            target=self.target,
            read_path=self.machine.read_path,
            stopped_seconds=self.machine.stopped_seconds,
            stops=len(self.machine.stops),
            attempts=moment.attempts,
            layout=self.known.source,
            rejected=self.known.rejected,
            found_stopped=self.machine.keep_stopped,
        )
        return Acquired(moment.snapshot, self.known.profile, origin, lambda: moment.memory)


@contextmanager
def attached(target: str, options: Options, progress: Progress = untold) -> Iterator[Attachment]:
    """Attach to the machine that a target names, and describe its kernel, for a block.

    Raises:
        TargetNotSupported: it is not a live machine, or it cannot be attached to.
        InspectorError: its kernel cannot be described.
    """
    progress(Doing.ATTACHING, "")
    host, port = address_of(target)
    with LiveMachine(
        host, port, read_path=options.read_path, keep_stopped=options.keep_stopped
    ) as machine:
        progress(Doing.DESCRIBING, "")
        known = describe_kernel(machine.memory, options, pause=machine.for_reading)
        yield Attachment(target=target, machine=machine, known=known)
