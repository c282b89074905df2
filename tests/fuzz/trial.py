"""One execution after the other, with its result, its time and its memory."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from inspector.errors import InspectorError

__all__ = ["Hang", "Trial", "memory_limit"]

PACKAGE = Path(__file__).resolve().parents[2]
MEASURED = 64
"""One of so many executions has its memory measured, which makes it slower."""
SECONDS = 5.0
"""Seconds of CPU time after which an execution is a hang; the inputs are a few KB."""
ROOM = 1 << 29
"""Bytes of address space that executions may add to those of the process."""
LEAST = 1 << 27
"""Bytes that any execution may have at once, for the batches in which memory is read."""
PER_BYTE = 64


class Hang(BaseException):
    """An execution takes too long; no handler for errors catches it."""


class TooMuchMemoryError(Exception):
    """An execution had more memory at once than the size of its input allows."""


class Trial:
    """Runs a function on inputs and keeps those at which it fails.

    Args:
        run: the function that is tried.
        allowed: errors that it may raise besides those of the inspector.

    ``failures`` has the first input of every kind of failure, by the error
    and the line it came from.
    """

    def __init__(
        self, run: Callable[[bytes], object], allowed: tuple[type[Exception], ...] = ()
    ) -> None:
        self._run = run
        self._allowed: tuple[type[Exception], ...] = (InspectorError, *allowed)
        self.runs = self.failed = self.refused = 0
        self.slowest = 0.0
        self.peak = 0
        self.failures: dict[str, bytes] = {}

    def __call__(self, data: bytes) -> None:
        """Execute once."""
        self.runs += 1
        measured = self.runs % MEASURED == 1
        before = self.failed
        if measured:
            tracemalloc.start()
        began = time.process_time()
        try:
            with _limited(SECONDS * (1 + 4 * measured)):
                self._run(data)
        except (Exception, Hang) as error:
            if isinstance(error, self._allowed):
                self.refused += 1
            else:
                self._fail(error, data)
        finally:
            if measured:
                self._weigh(data, self.failed != before)
            else:
                self.slowest = max(self.slowest, time.process_time() - began)

    def _weigh(self, data: bytes, failing: bool) -> None:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.peak = max(self.peak, peak)
        if peak > LEAST + PER_BYTE * len(data) and not failing:
            self._fail(TooMuchMemoryError(f"{peak} bytes"), data)

    def _fail(self, error: BaseException, data: bytes) -> None:
        self.failed += 1
        places = [
            f"{Path(frame.filename).relative_to(PACKAGE)}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(PACKAGE / "inspector")
        ]
        kind = type(error).__name__
        where = places[-1] if places and not isinstance(error, Hang) else "".join(places[:2])
        self.failures.setdefault(f"{kind} at {where or 'the target itself'}", data)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise ``Hang`` in a block that takes more CPU time than the limit."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def memory_limit(room: int = ROOM) -> Iterator[None]:
    """For a block, limit the process to some bytes of address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
