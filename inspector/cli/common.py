"""What the commands that open a target share."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import click

from inspector.session import Acquired, Options, acquire

__all__ = ["json_option", "open_target", "print_json", "target_options"]

READ_PATHS = ("auto", "gdb", "direct")
PROGRESS_AFTER = 1.0

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


def open_target(target: str, kernel: Path | None, modules: Path | None, read_path: str) -> Acquired:
    """Open a target, showing progress on a terminal."""
    with _Progress() as progress:
        return acquire(target, Options(kernel, modules, read_path), progress)


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


class _Progress:
    """Says on stderr what is being done, if it takes long and somebody is looking."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, stage: str) -> None:
        self._stage = stage

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            self._thread = threading.Thread(target=self._show, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _show(self) -> None:
        shown = False
        wait = PROGRESS_AFTER
        while not self._done.wait(wait):
            shown, wait = True, 0.5
            seconds = time.monotonic() - self._began
            click.echo(f"\r\x1b[K{self._stage} ... {seconds:.1f} s", nl=False, err=True)
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
