"""How to open a target: one set of options for commands, scripts and sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["READ_PATHS", "Options"]

READ_PATHS = ("auto", "gdb", "direct")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The files that describe the host's kernel, and how a live machine is read.

    Attributes:
        kernel: the kernel's vmlinux; without it, the kernel is found in the target's memory.
        modules: a modules tree, or a folder with kvm.ko and kvm-hv.ko.
        layout: a layout profile, in place of all other files.
        debug_file: the debug file of kvm-hv.ko, for a kernel without BTF.
        read_path: one of ``READ_PATHS``; ``"auto"`` reads from the QEMU process if it can.
        keep_stopped: leave the machine stopped. Needed only if QEMU runs on another host, where
            the tool cannot see whether the machine was stopped before.
    """

    kernel: Path | None = None
    modules: Path | None = None
    layout: Path | None = None
    debug_file: Path | None = None
    read_path: str = "auto"
    keep_stopped: bool = False
