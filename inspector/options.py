"""How to open a target: one set of options for commands, scripts and sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["READ_PATHS", "Options"]

READ_PATHS = ("auto", "gdb", "direct")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What describes the host's kernel, and how the bytes of a live machine are read.

    Attributes:
        kernel: its vmlinux; without it the kernel is found in the target's memory.
        modules: a modules tree, or a folder with kvm.ko and kvm-hv.ko.
        layout: a layout profile, in place of all other files.
        debug_file: the debug file of kvm-hv.ko, for a kernel without BTF.
        read_path: one of ``READ_PATHS``; ``"auto"`` reads from the QEMU process if it can.
        keep_stopped: leave the machine stopped; its QEMU cannot be seen from this host, which
            would tell how the machine was found.
    """

    kernel: Path | None = None
    modules: Path | None = None
    layout: Path | None = None
    debug_file: Path | None = None
    read_path: str = "auto"
    keep_stopped: bool = False
