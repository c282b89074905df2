"""For notebooks and scripts: open a target, look at its objects, check it, save it.

``inspector.open`` reads once and detaches; ``inspector.attach`` stays attached
for a series of readings.  ``manual/api.md`` describes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from inspector import __version__
from inspector.capture import Capture, write_capture
from inspector.checks.verdict import Judgement, judge
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.options import Options
from inspector.reports.jsonform import check_json
from inspector.session import Acquired, Attachment, Origin, acquire, attached
from inspector.storage import Output

__all__ = ["Attached", "Inspection", "attach", "open", "save"]

Name = str | PathLike[str]


@dataclass(frozen=True)
class Inspection:
    """Everything that was read from a target at one moment; nothing is held open."""

    acquired: Acquired

    @property
    def snapshot(self) -> Snapshot:
        """Everything that was read, decoded but not judged."""
        return self.acquired.snapshot

    @property
    def vms(self) -> tuple[Vm, ...]:
        """The L1 guests of the host."""
        return self.snapshot.vms

    @property
    def origin(self) -> Origin:
        """Where the snapshot comes from, and how long a live machine was stopped for it."""
        return self.acquired.origin

    def check(self) -> Judgement:
        """Check every VM against every invariant."""
        return judge(self.snapshot)

    def check_json(self) -> dict[str, Any]:
        """Return the document of ``inspector check --json``."""
        return check_json(self.acquired, self.check())

    def capture(self, path: Name, **facts: str) -> int:
        """Save it as a capture, which opens without any other file.

        Args:
            path: the file to write.
            facts: further facts about its origin, which the capture keeps.

        Returns:
            the size of the file in bytes.

        Raises:
            BadData: the file cannot be written.
        """
        return save(self.acquired, Output(path), facts)


@dataclass(frozen=True)
class Attached:
    """An attached live machine, which runs between the readings."""

    _attachment: Attachment

    def read(self) -> Inspection:
        """Stop the machine, copy the memory that matters, and let the machine run again.

        Raises:
            InspectorError: the machine cannot be inspected.
        """
        return Inspection(self._attachment.inspect())


def open(
    target: Name,
    *,
    kernel: Name | None = None,
    modules: Name | None = None,
    layout: Name | None = None,
    debug_file: Name | None = None,
    read_path: str = "auto",
) -> Inspection:
    """Open a target and read it.

    Args:
        target: ``gdb:HOST:PORT``, a file, ``split:FILE,FILE`` or ``raw:FILE@0xADDRESS``.
        kernel: the vmlinux of the host kernel; without it, the kernel is found in memory.
        modules: a modules tree, or a folder with kvm.ko and kvm-hv.ko.
        layout: a layout profile, in place of all other files.
        debug_file: the debug file of kvm-hv.ko, for a kernel without BTF.
        read_path: ``"auto"``, ``"gdb"`` or ``"direct"``, for a live machine.

    Raises:
        InspectorError: the target cannot be opened or inspected.
    """
    options = _options(kernel, modules, layout, debug_file, read_path)
    return Inspection(acquire(str(target), options))


@contextmanager
def attach(
    target: str,
    *,
    kernel: Name | None = None,
    modules: Name | None = None,
    layout: Name | None = None,
    debug_file: Name | None = None,
    read_path: str = "auto",
) -> Iterator[Attached]:
    """Attach to a live machine for a series of readings; arguments as for ``open``.

    The machine runs again after the block, however the block ends.

    Raises:
        InspectorError: the machine cannot be attached to.
    """
    options = _options(kernel, modules, layout, debug_file, read_path)
    with attached(target, options) as attachment:
        yield Attached(attachment)


def save(acquired: Acquired, output: Output, facts: Mapping[str, str]) -> int:
    """Write a capture with the facts about its origin; return its size in bytes.

    Raises:
        BadData: the file cannot be written.
    """
    known = {
        "taken": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "tool": f"inspector {__version__}",
        "source": acquired.origin.read_path,
    }
    kept = known | (acquired.origin.facts or {}) | dict(facts)
    return write_capture(output, Capture(acquired.memory, acquired.profile, kept))


def _options(
    kernel: Name | None,
    modules: Name | None,
    layout: Name | None,
    debug_file: Name | None,
    read_path: str,
) -> Options:
    kernel, modules, layout, debug_file = (
        None if name is None else Path(name) for name in (kernel, modules, layout, debug_file)
    )
    return Options(
        kernel=kernel, modules=modules, layout=layout, debug_file=debug_file, read_path=read_path
    )
