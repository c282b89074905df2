"""A GDB that is controlled over MI, without waiting longer than an answer takes.

pygdbmi does not start GDB here, nor does it wait for answers: its ``write``
would pause for 0.2 s after each command, and does not match tokens.  So each
command is sent with a token of its own, and output is read until the record
with that token.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from typing import Any, NamedTuple

from pygdbmi.gdbmiparser import parse_response
from pygdbmi.IoManager import IoManager

from inspector.errors import TargetLost, TargetNotSupported, shown
from inspector.live import gdb
from inspector.live.terms import CLOSED

__all__ = ["GdbError", "GdbProcess", "GdbSilent", "Result"]

TIMEOUT = 30.0
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
VALUE = b"\1"
"""Replaces a string, a tuple or a list while a record is checked."""
RESULT = rb"[\w-]+=" + VALUE
GROUP = re.compile(
    rb"\{(?:%b(?:,%b)*)?\}|\[(?:(?:%b|%b)(?:,(?:%b|%b))*)?\]"
    % (RESULT, RESULT, RESULT, VALUE, RESULT, VALUE)
)
RECORD = re.compile(rb"\d+\^[a-z]+(?:,%b)*" % RESULT)
DEPTH = 32
LINE_LIMIT = 1 << 24
"""Bytes of one line that GDB may print."""
SAID_LIMIT = 1 << 20
"""Bytes of the output of a command that are kept; more is dropped."""
REASON_LIMIT = 400
STREAMS = (b'~"', b'@"', b'&"')


class GdbError(TargetNotSupported):
    """GDB refused a command; the message is GDB's own."""


class GdbSilent(TargetLost):
    """GDB did not answer in the time that it was given."""


class Result(NamedTuple):
    """The answer to one command: its result payload and the console text before it."""

    payload: dict[str, Any]
    text: str


class _Wait(NamedTuple):
    """What is waited for, the timeout in seconds, and the deadline, which no output moves."""

    what: str
    timeout: float
    deadline: float


def _wait(what: str, timeout: float) -> _Wait:
    return _Wait(what, timeout, time.monotonic() + timeout)


class GdbProcess:
    """A running GDB."""

    def __init__(self) -> None:
        self._process = gdb.start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._io = IoManager(self._process.stdin, self._process.stdout, None)
        self._out = self._process.stdout.fileno()
        self._partial: list[bytes] = []
        self._lines: list[bytes] = []
        self._token = 0
        self._renewed = time.monotonic()
        self._ended = False
        self.running = False

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def command(self, text: str, timeout: float = TIMEOUT) -> Result:
        """Run one MI command and return its result.

        Lines that are not records are passed over: a signal that was raised
        in the middle of a read leaves a torn line.

        Raises:
            GdbError: GDB answered with an error.
            TargetLost: GDB ended or did not answer in time.
        """
        token = b"%d^" % self._send(text)
        wait = _wait(text, timeout)
        said: list[bytes] = []
        while True:
            line = self._line(wait)
            self._note_state(line)
            if line[:2] in STREAMS and line.endswith(b'"'):
                # a target can make GDB print without end
                if sum(map(len, said)) < SAID_LIMIT:
                    said.append(line)
            elif line.startswith(token) and (record := _parsed(line)) is not None:
                payload = record["payload"] or {}
                if record["message"] == "error":
                    reason = shown(str(payload.get("msg", "no reason")), REASON_LIMIT)
                    raise GdbError(f"GDB could not do '{text}': {reason}")
                self._renew()
                return Result(payload, "".join(map(_text, said)))

    def console(self, text: str, timeout: float = TIMEOUT) -> str:
        """Run a command of GDB's command line and return what it printed."""
        return self.command(f'-interpreter-exec console "{text}"', timeout).text

    def resume(self) -> None:
        """Let the target run.

        Raises:
            TargetLost: it has ended.
        """
        # Set first: after a Ctrl-C in between, the target must count as running.
        self.running = True
        try:
            self.command("-exec-continue")
            # GDB answers before it sends the packet, and takes the next command when it is sent.
            self.command("-gdb-show confirm")
        except GdbError as error:
            # no target runs, so that waiting for it to stop would be in vain
            self.running = False
            raise TargetLost(f"{CLOSED} ({error})") from error

    def interrupt(self) -> None:
        """Stop a running target, and wait until it is stopped."""
        if self.running:
            self.command("-exec-interrupt")
            self.wait_stopped()

    def wait_stopped(self, timeout: float = TIMEOUT) -> None:
        """Wait until GDB reports that the target is stopped.

        Raises:
            GdbSilent: it has not stopped in time.
            TargetLost: it has ended.
        """
        wait = _wait("stop", timeout)
        while self.running:
            self._note_state(self._line(wait))
        if self._ended:
            raise TargetLost(CLOSED)

    def close(self) -> None:
        """Kill GDB, before it can do anything more; never raises."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _send(self, text: str) -> int:
        self._token += 1
        try:
            self._io.write(f"{self._token}{text}", read_response=False)
        except (OSError, ValueError) as error:
            raise TargetLost(f"GDB ended before '{text}' could be sent") from error
        return self._token

    def _note_state(self, line: bytes) -> None:
        if line.startswith(b"*stopped"):
            self.running = False
        elif line.startswith(b"*running"):
            self.running = True
        elif line.startswith(b"=thread-group-exited"):
            self.running = False
            self._ended = True

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > gdb.RENEWED_AFTER:
            self._renewed = time.monotonic()
            gdb.renew(self._process)

    def _line(self, wait: _Wait) -> bytes:
        """Return the next line."""
        while not self._lines:
            left = wait.deadline - time.monotonic()
            if left <= 0 or not select.select([self._out], [], [], left)[0]:
                raise GdbSilent(
                    f"GDB did not answer within {wait.timeout:.0f} s (waiting for "
                    f"'{wait.what}'); is the machine's QEMU still alive?"
                )
            if sum(map(len, self._partial)) > LINE_LIMIT:
                raise TargetNotSupported(
                    f"GDB printed over {LINE_LIMIT >> 20} MiB in one line (waiting for "
                    f"'{wait.what}'), so it is not attached to QEMU"
                )
            piece = os.read(self._out, 1 << 18)
            if not piece:
                raise TargetLost(f"GDB ended while '{wait.what}' was under way")
            *whole, rest = piece.split(b"\n")
            if whole:
                whole[0] = b"".join((*self._partial, whole[0]))
                self._partial = []
                # in reverse, because the next line is taken from the end
                self._lines.extend(reversed(whole))
            self._partial.append(rest)
        return self._lines.pop()


def _is_record(line: bytes) -> bool:
    """Say whether a line is a whole, well-formed result record of GDB/MI."""
    # strings are replaced first, then tuples and lists from the innermost ones outwards
    bare = STRING.sub(VALUE, line)
    for _ in range(DEPTH):
        bare, found = GROUP.subn(VALUE, bare)
        if not found:
            break
    return VALUE not in line and RECORD.fullmatch(bare) is not None


def _parsed(line: bytes) -> dict[str, Any] | None:
    # pygdbmi would look for ever for the end of a string, a tuple or a list that is left open
    if not _is_record(line):
        return None
    try:
        record: dict[str, Any] = parse_response(line.decode("utf-8", "replace"))
    except Exception:  # pygdbmi raises whatever it stumbles over in a torn line
        return None
    return record


def _text(line: bytes) -> str:
    """Return the text of a line of console, target or log output."""
    return line[2:-1].decode("unicode_escape", "replace")
