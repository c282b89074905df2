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
from pathlib import Path

from inspector.capture import Capture, read_capture
from inspector.errors import BadData, InspectorError, Step, TargetNotSupported
from inspector.image.profile import Profile
from inspector.kernel.choose import Known, Sources, describe_kernel
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.memory.ahead import LIVE_PREFIX, address_of
from inspector.memory.base import AddressSpace
from inspector.memory.dump import PREFIXES, Dump, open_dump
from inspector.memory.live import LiveMachine
from inspector.memory.recording import RecordingMemory
from inspector.memory.segments import SegmentedMemory
from inspector.moment import take
from inspector.structures.space import KernelSpace

__all__ = [
    "Acquired",
    "Options",
    "Origin",
    "Progress",
    "acquire",
    "attached",
    "dump_of",
    "inspected",
    "kernel_of",
]

SHOWN = 300
"""Characters of a name that are shown where it names nothing."""
LIKE_A_PORT = re.compile(r"[^:/]+:\d+$")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to open a target: what describes its kernel, and the way bytes are read.

    ``stands`` says that a live machine stands still and shall stay so.
    """

    kernel: Path | None = None
    modules: Path | None = None
    read_path: str = "auto"
    layout: Path | None = None
    debug_file: Path | None = None
    stands: bool = False

    @property
    def sources(self) -> Sources:
        """What was given to describe the kernel."""
        return Sources(self.layout, self.kernel, self.modules, self.debug_file)


@dataclass(frozen=True)
class Origin:
    """Where a snapshot comes from.

    ``stopped_seconds`` and ``stops`` say how long, and how often, a live
    machine stood still; ``attempts`` how often it was copied until no
    ``mmu_lock`` was held and nothing lacking.  ``facts`` are those that a capture carries.
    ``stands`` says that it stood still when it was found, and still does.
    ``layout`` says what described the kernel, and ``rejected`` which other
    kernels were met on the way and why they are not the host's.
    """

    target: str
    read_path: str
    stopped_seconds: float | None = None
    stops: int = 0
    attempts: int = 0
    facts: dict[str, str] | None = None
    layout: str = ""
    rejected: tuple[str, ...] = ()
    stands: bool = False


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


def acquire(target: str, options: Options, progress: Progress = lambda stage: None) -> Acquired:
    """Open a target and collect its snapshot.

    Raises:
        InspectorError: the target cannot be opened or inspected.
    """
    if target.startswith(LIVE_PREFIX):
        return _live(target, options, progress)
    return _file(target, options, progress)


def kernel_of(target: str, options: Options, progress: Progress = lambda stage: None) -> Known:
    """Open a target and describe its kernel, and nothing else.

    Raises:
        InspectorError: the target cannot be opened or its kernel not described.
    """
    if target.startswith(LIVE_PREFIX):
        progress("attaching")
        with attached(target, options) as machine:
            progress("finding the kernel")
            return describe_kernel(machine.memory, options.sources, pause=machine.for_reading)
    dump = dump_of(target)
    with _what_lacks_is_said(dump):
        return _kernel_of_dump(dump, options, progress)[0]


def dump_of(target: str) -> Dump:
    """Open the dump that a target names, and no more than its headers.

    Raises:
        InspectorError: there is none, or it cannot be opened.
    """
    if not target.startswith(PREFIXES) and not os.path.exists(target):
        meant = LIKE_A_PORT.search(target)
        live = LIVE_PREFIX + (meant[0] if meant else "HOST:PORT")
        shown = target if len(target) <= SHOWN else f"{target[:SHOWN]}..."
        raise BadData(f"there is no file '{shown}'; a live machine is given as {live}")
    return open_dump(target)


@contextmanager
def _what_lacks_is_said(dump: Dump) -> Iterator[None]:
    try:
        yield
    except InspectorError as error:
        if dump.lacks:
            raise TargetNotSupported(f"{dump.lacks} ({error})", Step.FORMAT) from error
        raise


def _kernel_of_dump(
    dump: Dump, options: Options, progress: Progress
) -> tuple[Known, Capture | None]:
    capture = read_capture(dump.core) if dump.core else None
    if capture is not None:
        return Known(capture.profile, "the capture"), capture
    progress("finding the kernel")
    return describe_kernel(dump.memory, options.sources, dump.vmcoreinfo or ""), None


def _file(target: str, options: Options, progress: Progress) -> Acquired:
    progress("opening the file")
    dump = dump_of(target)
    with _what_lacks_is_said(dump):
        known, capture = _kernel_of_dump(dump, options, progress)
        progress("decoding")
        # of memory that lacks, a core says less than the capture in it
        memory = dump.memory if capture is None else capture.memory
        snapshot = _walked(memory, known.profile)
    facts = capture.facts if capture else None
    kind = dump.kind if capture is None else "a capture"
    origin = Origin(target, kind, facts=facts, layout=known.source, rejected=known.rejected)

    def walked_again() -> SegmentedMemory:
        recorder = RecordingMemory(memory)
        _walked(recorder, known.profile)
        return recorder.freeze()

    return Acquired(snapshot, known.profile, origin, walked_again)


def _walked(memory: AddressSpace, profile: Profile) -> Snapshot:
    kernel = KernelSpace(memory, profile)
    return collect(kernel, vm_list(kernel))


def _live(target: str, options: Options, progress: Progress) -> Acquired:
    progress("attaching")
    with attached(target, options) as machine:
        return inspected(machine, target, options, progress)


def attached(target: str, options: Options) -> LiveMachine:
    """Attach to the machine that a target names.

    Raises:
        TargetNotSupported: it is none, or it cannot be attached to.
    """
    host, port = address_of(target)
    return LiveMachine(host, port, options.read_path, options.stands)


def inspected(machine: LiveMachine, target: str, options: Options, progress: Progress) -> Acquired:
    """Describe the kernel of a machine and collect the snapshot of one moment of it."""
    progress("finding the kernel")
    known = describe_kernel(machine.memory, options.sources, pause=machine.for_reading)
    progress("reading")
    moment = take(machine, known.profile)
    origin = Origin(
        target,
        machine.read_path,
        machine.stopped_seconds,
        len(machine.stops),
        moment.attempts,
        layout=known.source,
        rejected=known.rejected,
        stands=machine.stays,
    )
    return Acquired(moment.snapshot, known.profile, origin, lambda: moment.memory)
