"""Functions that the commands that open a target share."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from types import TracebackType
from typing import Any

import click

from inspector.cli.options import Target
from inspector.errors import printable
from inspector.kernel.choose import DescribedKernel
from inspector.progress import Doing, Progress
from inspector.session import Acquired, acquire, kernel_of

__all__ = ["describe_target", "open_target", "print_json", "progress", "say"]

PROGRESS_AFTER = 1.0


def open_target(target: Target) -> Acquired:
    """Open a target, showing progress on a terminal."""
    with _Progress() as progress:
        return acquire(target.name, target.options, progress)


def describe_target(target: Target) -> DescribedKernel:
    """Open a target and describe its kernel only, showing progress on a terminal."""
    with _Progress() as progress:
        return kernel_of(target.name, target.options, progress)


def progress() -> contextlib.AbstractContextManager[Progress]:
    """Return a context whose stages are shown on a terminal if they take long."""
    return _Progress()


def say(text: str, *, err: bool = False) -> None:
    """Print a line, with control characters from a target or a file escaped.

    With ``err`` a failed write is ignored: a lost message does not change the result.
    """
    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        click.echo(printable(text), err=err)


def print_json(value: dict[str, Any], *, err: bool = False) -> None:
    """Print one JSON document."""
    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        click.echo(json.dumps(value, indent=2), err=err)


class _Progress:
    """Shows on stderr what is being done, if it takes long and stderr is a terminal."""

    def __init__(self) -> None:
        self._stage = ""
        self._began = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self, doing: Doing, detail: str) -> None:
        self._stage = f"{doing.value}: {detail}" if detail else doing.value

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
        with contextlib.suppress(OSError):
            self._show_stages()

    def _show_stages(self) -> None:
        shown = False
        wait = PROGRESS_AFTER
        while not self._done.wait(wait):
            shown, wait = True, 0.5
            seconds = time.monotonic() - self._began
            click.echo(f"\r\x1b[K{printable(self._stage)} ... {seconds:.1f} s", nl=False, err=True)
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
