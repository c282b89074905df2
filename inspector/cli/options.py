"""Arguments and options that several commands share; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["json_option", "target_options"]

READ_PATHS = ("auto", "gdb", "direct")

Command = TypeVar("Command", bound=Callable[..., Any])


def target_options(command: Command) -> Command:
    """Add the TARGET argument and the options that say how to open it."""
    decorators = (
        click.argument("target"),
        click.option(
            "--kernel",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="vmlinux of the host kernel; found on this host if not given",
        ),
        click.option(
            "--modules",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="modules tree, or folder with kvm.ko and kvm-hv.ko",
        ),
        click.option(
            "--read-path",
            type=click.Choice(READ_PATHS),
            default="auto",
            show_default=True,
            help="how to read a live machine: through GDB, or directly from the QEMU process",
        ),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="print JSON instead of text")(
        command
    )
