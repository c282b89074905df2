"""The conversation with QEMU's stub: its questions, the answers to them, and their deadlines.

A question is sent only if ``answers`` has a form for it, and a packet that
arrives must have the form of the oldest question that is not answered.  Every
question has one deadline, counted from the moment it is asked, however much
arrives meanwhile, and every answer has a limit for its size.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import select
import socket
import time
from collections import deque
from typing import NamedTuple

from inspector.errors import shown
from inspector.live import answers, terms
from inspector.live.answers import OK, Form
from inspector.live.description import (
    ROOT,
    TEXT_LIMIT,
    Description,
    NotDescribed,
    OtherArchitecture,
    described,
)
from inspector.live.framing import Decoder, Malformed, Sign, encoded
from inspector.live.terms import CHUNK, CLOSED, LOG, SEPARATOR

__all__ = [
    "ACKNOWLEDGED",
    "LOGGED",
    "PIECE",
    "SUPPORTED",
    "Abandoned",
    "Guard",
    "Log",
    "OtherMachine",
    "ProtocolBroken",
    "Stub",
    "StubLost",
    "StubRefused",
    "StubSilent",
    "packet_of",
]

LOGGED = 96
"""Bytes of a packet that a log shows."""

SUPPORTED = b"qSupported:multiprocess+"
"""Sent to the stub in place of GDB's own offer, which has more abilities that a stub could use."""
ACKNOWLEDGED = b"+"
INTERRUPT = b"\3"
PHYSICAL = b"Qqemu.PhyMemMode:1"

WINDOW = 64
"""Packets under way at once, so few that their questions fit in any socket's buffer."""
PIECE = 1 << 16
"""Bytes that are taken from a socket at once."""
RATE = 1 << 16
"""Bytes of memory for which a deadline is one second later."""
STILL = 20.0
"""Seconds for which reading may keep a machine stopped; its guests' watchdogs wait as long."""
LEAVE = 5.0
"""Seconds that leaving the machine may take, in all."""
UNASKED_STOPS = 8
"""Stop replies that answer no question and are passed over between two answers: QEMU repeats one
to its next client."""
PRINTED_LIMIT = 1 << 22
"""Bytes that a command of the monitor may print."""


class StubLost(Exception):  # noqa: N818
    """The stub does not answer, or has closed the connection."""


class StubSilent(StubLost):
    """The stub has accepted the connection and did not answer in time."""


class ProtocolBroken(StubLost):
    """The stub has sent a packet that is not an answer to its question."""


class OtherMachine(StubLost):
    """The machine is not a 64-bit POWER machine; the message is its architecture."""


class Abandoned(Exception):  # noqa: N818
    """The inspector is gone, or this process is to end."""


class StubRefused(Exception):  # noqa: N818
    """The request cannot be carried out; the message says why."""


class Asked(NamedTuple):
    """A question that is not answered yet."""

    question: bytes
    form: Form


class Guard:
    """Waits for sockets, but no longer than the inspector is there.

    Args:
        owner: the descriptor of a socket whose other end the inspector has.
        signalled: a descriptor that becomes readable when this process is to
            end; -1 for none.
    """

    def __init__(self, owner: int, signalled: int = -1) -> None:
        self._owner, self._signalled = owner, signalled
        self._until: float | None = None

    @property
    def leaving(self) -> bool:
        """Whether ``leave`` was called."""
        return self._until is not None

    def leave(self) -> None:
        """Stop watching the owner, and from now on wait for ``LEAVE`` seconds in all."""
        self._owner = self._signalled = -1
        self._until = time.monotonic() + LEAVE

    def ready(self, ends: dict[int, int], deadline: float | None = None) -> set[int]:
        """Return the descriptors that are ready.

        Args:
            ends: descriptors, each with the events of ``poll`` to wait for.
            deadline: a time of ``time.monotonic()``, None for no limit.

        Raises:
            StubSilent: none was ready in time.
            Abandoned: the owner is gone, or a signal has come.
        """
        poll = select.poll()
        for descriptor, events in ends.items():
            poll.register(descriptor, events)
        if self._owner >= 0:
            poll.register(self._owner, ends.get(self._owner, 0) | select.POLLRDHUP)
        if self._signalled >= 0:
            poll.register(self._signalled, select.POLLIN)
        limits = [limit for limit in (deadline, self._until) if limit is not None]
        left = max(0.0, min(limits) - time.monotonic()) * 1000 if limits else None
        found = dict(poll.poll(left))
        gone = select.POLLRDHUP | select.POLLHUP | select.POLLERR
        if self._signalled in found or found.get(self._owner, 0) & gone:
            raise Abandoned
        if not found:
            raise StubSilent("the stub did not answer in time")
        return set(found)

    def send(self, end: socket.socket, data: bytes, deadline: float) -> None:
        """Send all of the data over a non-blocking socket.

        Raises:
            StubSilent: the other end does not take it in time.
        """
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[end.send(rest) :]
            except BlockingIOError:
                self.ready({end.fileno(): select.POLLOUT}, deadline)


class Log:
    """The file to which packets are logged, if the environment variable ``LOG`` names one."""

    def __init__(self) -> None:
        name = os.environ.get(LOG)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(name, flags, 0o600) if name else None

    @property
    def kept(self) -> bool:
        """Whether packets are logged."""
        return self._file is not None

    def note(self, sign: str, packet: bytes) -> None:
        """Add the line of a packet."""
        if self._file is not None:
            text = packet[:LOGGED].decode("latin-1").encode("unicode_escape").decode()
            # a full disk is no reason to leave the machine stopped
            with contextlib.suppress(OSError):
                os.write(self._file, f"{time.monotonic():.6f} {sign} {text}\n".encode())


class Stub:
    """QEMU's stub at the other end of a connection.

    Args:
        end: the connection.
        guard: waits for it.
        log: where packets are noted.
    """

    def __init__(self, end: socket.socket, guard: Guard, log: Log) -> None:
        self.end = end
        end.setblocking(False)
        self._guard, self._log = guard, log
        self._decoder = Decoder(interrupts=False)
        self._asked: deque[Asked] = deque()
        """The questions that are not answered yet, the oldest first."""
        self._breakpoints: set[bytes] = set()
        """The breakpoints that are set, each as its packet without the ``Z``."""
        self._unasked = 0
        """Stop replies passed over after the last answer."""
        self._read, self._reading = 0, 0.0
        """Bytes that were read while the machine is stopped, and the seconds that this took."""
        self._stopping = self._physical = False
        """Whether the machine was asked to stop and has not reported yet that it did; whether the
        stub may be in physical mode."""
        self.ended = False
        """Whether the machine has ended, or was lost while it ran: there is nothing to resume."""
        self.patience = terms.SILENT
        """Seconds in which the stub answers a question."""

    @property
    def runs(self) -> bool:
        """Whether the machine runs: it was resumed, and has not reported a stop."""
        return bool(self._asked) and self._asked[0].form is answers.GO

    def send(self, *questions: bytes) -> None:
        """Send questions.

        Raises:
            StubRefused: one of them may not be asked.
            StubLost: the connection is closed.
        """
        for question in questions:
            form = answers.form_of(question)
            if form is None:
                raise StubRefused(f"'{shown(question)}' is none of what a stub may be asked")
            self._owe(question, form)
        self._put(b"".join(map(packet_of, questions)))

    def _send_reads(self, questions: list[bytes], before: tuple[bytes, ...] = ()) -> None:
        """Send questions for memory, after others, in one piece; ``read`` decodes the digits."""
        for question in before:
            self._owe(question, answers.CHANGE_OF_MODE)
        for question in questions:
            self._owe(question, answers.OWN_MEMORY)
        self._put(b"".join(map(packet_of, (*before, *questions))))

    def _owe(self, question: bytes, form: Form) -> None:
        """Expect an answer to a question that is about to be sent."""
        self._log.note(">", question)
        self._asked.append(Asked(question, form))
        if question[:1] == b"Z":
            self._breakpoints.add(question[1:])
        elif question[:1] == b"z":
            self._breakpoints.discard(question[1:])
        elif question == PHYSICAL:
            self._physical = True
        elif form is answers.GO:
            self._read, self._reading = 0, 0.0

    def _put(self, data: bytes) -> None:
        try:
            self._guard.send(self.end, data, time.monotonic() + self.patience)
        except OSError as error:
            raise StubLost(f"the stub takes no packets: {error}") from error

    def refuse(self, packet: bytes) -> None:
        """Log a packet of GDB's that is not sent."""
        self._log.note("!", packet)

    def interrupt(self) -> None:
        """Ask the machine to stop, if it runs."""
        if self.runs:
            self._stopping = True
            self._log.note(">", INTERRUPT)
            self._put(INTERRUPT)

    def hold(self) -> None:
        """Stop the machine and wait until it is stopped.

        Raises:
            StubRefused: breakpoints are set, so that it may stop by itself,
                and GDB would have to know of that stop.
            StubLost: it does not stop.
        """
        if self._breakpoints:
            raise StubRefused("breakpoints are set")
        self._stop()
        if self.ended:
            raise StubLost(CLOSED)

    def _stop(self) -> None:
        if not self._stopping:
            self.interrupt()
        deadline = self.deadline()
        while self.runs:
            self.answer(deadline)

    def deadline(self, length: int = 0) -> float:
        """Return the time until which a question that is asked now must be answered.

        Args:
            length: bytes of memory that are asked for.
        """
        return time.monotonic() + self.patience + length / RATE

    def arrived(self) -> bytes | None:
        """Return the next answer that has arrived, None if there is none.

        A stop reply that nobody waits for is passed over: it was meant for an
        earlier client.

        Raises:
            ProtocolBroken: a packet came that is not an answer.
        """
        try:
            while (packet := self._decoder.next()) is not None:
                if isinstance(packet, Sign):
                    raise Malformed("a request to send a packet again")
                self._log.note("<", packet)
                if self._admitted(packet):
                    return packet
        except Malformed as error:
            raise ProtocolBroken(f"{self._expected()}, and {error} came") from error
        return None

    def _admitted(self, packet: bytes) -> bool:
        """Take a packet as the next answer; false if it is a stop reply that is passed over."""
        asked = self._asked[0] if self._asked else None
        if asked is None or not asked.form.admits(asked.question, packet):
            repeated = answers.STOP.fullmatch(packet) and not answers.is_exit(packet)
            if repeated and self._unasked < UNASKED_STOPS:
                self._unasked += 1
                return False
            raise ProtocolBroken(f"{self._expected()}, and '{shown(packet)}' came")
        self._unasked = 0
        if asked.form is answers.GO:
            self._stopping = False
            self.ended = answers.is_exit(packet)
        # packets with output of the monitor also begin with O; only OK or an error ends its answer
        if asked.form is not answers.MONITOR or packet[:1] != b"O" or packet == OK:
            self._asked.popleft()
        return True

    def _expected(self) -> str:
        if not self._asked:
            return "the stub was asked nothing"
        question, form = self._asked[0]
        return f"the stub was asked '{shown(question)}' ({form.name})"

    def fill(self, deadline: float | None) -> None:
        """Wait for more bytes.

        Raises:
            StubLost: nothing came in time, or the connection is closed.
        """
        try:
            self._guard.ready({self.end.fileno(): select.POLLIN}, deadline)
            piece = self.end.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        except StubSilent:
            raise StubSilent(
                f"{self._expected()} and did not answer it in the time it was given"
            ) from None
        if not piece:
            # a machine that runs, and that nothing is going to stop, needs nothing more from here
            self.ended = self.ended or self._undisturbed
            raise StubLost(CLOSED)
        self._decoder.feed(piece)

    def answer(self, deadline: float) -> bytes:
        """Wait for an answer and return it.

        Raises:
            StubLost: none came.
        """
        while (packet := self.arrived()) is None:
            self.fill(deadline)
        return packet

    def ask(self, question: bytes) -> bytes:
        """Send a question and return the answer."""
        self.send(question)
        return self.answer(self.deadline())

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's monitor and return what it prints.

        Raises:
            StubRefused: the monitor did not do it.
            ProtocolBroken: the output is too long, or not in digits.
        """
        self.send(b"qRcmd," + binascii.hexlify(command.encode()))
        deadline = self.deadline()
        printed = bytearray()
        while (answer := self.answer(deadline))[:1] == b"O" and answer != OK:
            try:
                printed += binascii.unhexlify(answer[1:])
            except ValueError as error:
                raise ProtocolBroken(f"the stub printed '{shown(answer)}'") from error
            if len(printed) > PRINTED_LIMIT:
                raise ProtocolBroken(
                    f"QEMU's monitor printed over {PRINTED_LIMIT} bytes for '{command}'"
                )
        if answer != OK:
            raise StubRefused(f"QEMU's monitor did not do '{command}': {_said(answer)}")
        return printed.decode("utf-8", "replace").replace(SEPARATOR, "\N{REPLACEMENT CHARACTER}")

    def read(self, ranges: list[tuple[int, int]]) -> bytes:
        """Return the bytes of ranges of physical memory, one after the other.

        The stub is in physical mode only during this call.

        Raises:
            StubRefused: it could not read one of them.
        """
        pieces = [
            (begin, min(CHUNK, start + length - begin))
            for start, length in ranges
            for begin in range(start, start + length, CHUNK)
        ]
        size = sum(length for _, length in ranges)
        begun, deadline = time.monotonic(), self.deadline(size)
        questions = [b"m%x,%x" % piece for piece in pieces]
        sent = min(WINDOW, len(questions))
        self._send_reads(questions[:sent], before=(PHYSICAL,))
        if self.answer(deadline) != OK:
            raise StubRefused("the stub has no physical mode")
        found: list[bytes] = []
        wrong = None
        while len(found) < len(questions):
            found.append(self.answer(deadline))
            # after a wrong answer, the others are still taken, because the stub sends them
            if len(found[-1]) != 2 * pieces[len(found) - 1][1] and wrong is None:
                wrong = len(found) - 1
            # half a window of questions goes out at once, not one for each answer
            if sent < len(questions) and sent - len(found) <= WINDOW // 2:
                more = questions[sent : len(found) + WINDOW]
                self._send_reads(more)
                sent += len(more)
        self.virtual()
        self._count(size, time.monotonic() - begun)
        if wrong is not None:
            address, length = pieces[wrong]
            raise StubRefused(f"{address:x} {length:x} the stub answered {_said(found[wrong])}")
        try:
            return binascii.unhexlify(b"".join(found))
        except ValueError as error:
            raise ProtocolBroken(
                "the stub was asked for memory, and its answer has other bytes than digits"
            ) from error

    def _count(self, size: int, seconds: float) -> None:
        """Count the bytes that were read while the machine is stopped.

        Each answer may be in time, but a list without an end needs any number
        of them.

        Raises:
            StubLost: all of it together took too long.
        """
        self._read += size
        self._reading += seconds
        if self._reading > min(self.patience + self._read / RATE, STILL):
            raise StubLost(
                f"reading kept the machine stopped for {self._reading:.0f} s, in which "
                f"{self._read} bytes came, and is not done: a structure in memory has no end, or "
                "the connection is too slow; take a dump, which may take as long as it needs"
            )

    def virtual(self) -> None:
        """Put the stub back into virtual mode.

        Raises:
            StubRefused: the stub has no modes.
        """
        if self.ask(b"Qqemu.PhyMemMode:0") != OK:
            raise StubRefused("the stub has no physical mode")
        self._physical = False

    def is_physical(self) -> bool:
        """Say whether the stub is in physical mode; a client that was killed may have left it so.

        Raises:
            StubRefused: the stub has no modes.
        """
        mode = self.ask(b"qqemu.PhyMemMode")
        if mode not in (b"0", b"1"):
            raise StubRefused("the stub has no physical mode")
        return mode == b"1"

    def described(self) -> Description | None:
        """Return the machine's description, None if the stub has none.

        Raises:
            ProtocolBroken: it is not one that QEMU would give.
            OtherMachine: it describes another architecture.
        """
        deadline = self.deadline()

        def fetch(name: str) -> bytes:
            text = bytearray()
            while True:
                self.send(b"qXfer:features:read:%b:%x,%x" % (name.encode(), len(text), CHUNK))
                part = self.answer(deadline)
                if part[:1] not in (b"l", b"m") or part == b"m" or len(text) > TEXT_LIMIT:
                    raise NotDescribed(f"{name} is not given whole")
                text += part[1:]
                if part[:1] == b"l":
                    return bytes(text)

        if self.ask(b"qXfer:features:read:%b:0,1" % ROOT.encode())[:1] not in (b"l", b"m"):
            return None
        try:
            return described(fetch)
        except OtherArchitecture as error:
            raise OtherMachine(str(error)) from error
        except NotDescribed as error:
            raise ProtocolBroken(
                f"the stub does not describe the machine as QEMU does: {error}"
            ) from error

    @property
    def _undisturbed(self) -> bool:
        """Whether the machine runs, and nothing that was sent is going to stop it."""
        return self.runs and not self._stopping and not self._breakpoints

    def leave(self, keep_stopped: bool) -> None:
        """Let the machine run, without anything of GDB's in it, or leave it stopped.

        A machine that runs and has no breakpoints is left by closing the
        connection: to detach, the relay would have to stop it.

        Raises:
            StubLost: that was not possible.
        """
        if self.ended or (self._undisturbed and not keep_stopped):
            return
        self.catch_up()
        self._stop()
        if self._physical:
            self.virtual()
        for place in list(self._breakpoints):
            self.ask(b"z" + place)
        # QEMU refuses a D without the number of the process where ``multiprocess`` was agreed on
        if not keep_stopped and self.ask(b"D") != OK and self.ask(b"D;1") != OK:
            raise StubLost("the stub does not let the machine run")

    def catch_up(self) -> None:
        """Take the answers to the questions that were open when the inspector went away."""
        deadline = self.deadline()
        while self._asked and not self.runs:
            self.answer(deadline)

    def farewell(self) -> None:
        """Send all that lets the machine run, and wait for no answer.

        The stub may serve another client first.  It must not be asked twice
        to detach: QEMU ends at the second time.
        """
        last = (SUPPORTED, *(b"z" + place for place in self._breakpoints))
        last += (b"Qqemu.PhyMemMode:0",) if self._physical else ()
        data = INTERRUPT if self.runs else b""
        with contextlib.suppress(OSError):
            self.end.send(data + b"".join(map(packet_of, (*last, b"D;1"))))


def packet_of(question: bytes) -> bytes:
    """Return a packet as it is sent, after the acknowledgement of the packet before.

    QEMU takes the first byte that comes while the machine runs for a request
    to stop, and drops it.  That byte is then the acknowledgement.
    """
    return ACKNOWLEDGED + encoded(question)


def _said(answer: bytes) -> str:
    return shown(answer) or "nothing"
