"""The relay: a process of its own between GDB and QEMU's stub.

The relay speaks the remote protocol with both and passes no byte on as it
came.  It compares the questions of GDB with the list in ``answers``, and
refuses all questions that write.  A packet of the stub must be an answer of
the right form to the question that was asked; the relay decodes it, and
encodes it anew for GDB.  Anything else ends the connection.

While GDB waits for nothing and the machine is stopped, the inspector asks
the relay for memory, with many packets under way at once.  This is several
times as fast as reading through GDB.

The relay outlives both.  When the inspector or GDB goes away, in whatever
way, the machine gets its virtual mode back, loses the breakpoints that were
set, and runs, or stays stopped if it was found stopped.  No stub can keep the
relay from that: whenever the relay waits, it also watches the inspector and
the clock.

A request of the inspector is a line of ASCII over a socket.  The answer is the
line ``ok LENGTH`` or ``error LENGTH`` and that many bytes, as in ``served``:

    about                    what QEMU's monitor said at the beginning, in two parts
    ends                     address and port of both ends of the connection, the stub's first
    read ADDRESS LENGTH ...  physical memory, hexadecimal; the bytes one after the other
    packet TEXT              a packet that sets or removes a breakpoint, and its answer
    monitor TEXT             a command of QEMU's monitor, and what it printed
    hold, go                 stop the machine and let it run, which GDB need not know of

If the environment variable INSPECTOR_PACKET_LOG names a file, the relay adds a
line to it for each packet: the time in seconds, ``>`` to the stub, ``<`` from
it or ``!`` for a question of GDB's that was not passed on, and the packet, cut
short.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import sys
import time

from inspector.errors import shown
from inspector.live import answers, terms
from inspector.live.confine import Limits, confine
from inspector.live.description import ROOT, Description
from inspector.live.framing import Decoder, Malformed, Sign, encoded
from inspector.live.stub import (
    ACKNOWLEDGED,
    PIECE,
    SUPPORTED,
    Abandoned,
    Guard,
    Log,
    OtherMachine,
    ProtocolBroken,
    Stub,
    StubLost,
    StubRefused,
    StubSilent,
)
from inspector.live.terms import (
    BROKEN,
    FOREIGN,
    GONE,
    KEEP_STOPPED,
    LEFT,
    OTHER,
    PATIENCE,
    REPLAYING,
    RESUME,
    SEPARATOR,
    SILENCE,
    STUCK,
    UNREACHED,
)

__all__ = ["COMMANDS", "GO", "Relay", "main"]

COMMANDS = re.compile(r"info [\w -]+|gpa2hva 0x[0-9a-f]+|replay_(seek|break) \d+")
"""The commands of the monitor that the inspector may give; none of them names a file."""
GO = b"vCont;c"
DETACH = b"D"
DESCRIPTION_PART = re.compile(rb"qXfer:features:read:([^:]*):([0-9a-f]{1,8}),([0-9a-f]{1,8})")

GIVEN_UP = 8
"""Seconds after which a relay that is leaving the machine ends, done or not."""
MEMORY = 512
"""MiB that the relay may use."""


class Relay:
    """The three ends: the stub, GDB, and the inspector that asks."""

    def __init__(
        self, stub: Stub, gdb: socket.socket | None, control: socket.socket, guard: Guard
    ) -> None:
        self.stub, self.gdb, self.control = stub, gdb, control
        self._guard = guard
        self._from_gdb = Decoder(interrupts=True)
        self._asked = bytearray()
        """Bytes of the inspector that are not a whole request yet."""
        self._gdb_waits = False
        """Whether GDB has resumed the machine and waits for a stop."""
        self._description: Description | None = None
        self.about = ("", "")

    def begin(self, found: str) -> bool:
        """Find out how the machine was found; true if it is to be left stopped.

        QEMU pauses a running machine when a client connects.  So a state other
        than plain "paused" is a state in which the machine was found.
        """
        self.about = self.stub.monitor("info status").strip(), self.stub.monitor("info replay")
        if self.stub.is_physical():
            self.stub.virtual()
        self.stub.patience = PATIENCE
        if found == RESUME:
            return False
        return found == KEEP_STOPPED or not terms.ran(self.about[0]) or REPLAYING in self.about[1]

    def serve(self) -> None:
        """Pass packets on and answer requests until GDB or the inspector goes away.

        Raises:
            StubLost: the stub went away.
            Abandoned: the inspector went away, or this process is to end.
        """
        ends = [self.stub.end, self.control, *([self.gdb] if self.gdb is not None else ())]
        wanted = {end.fileno(): select.POLLIN for end in ends}
        while not self._guard.leaving:
            ready = self._guard.ready(wanted)
            if self.gdb is not None and self.gdb.fileno() in ready and not self._to_stub(self.gdb):
                return
            if self.stub.end.fileno() in ready:
                self.stub.fill(time.monotonic() + self.stub.patience)
                while (packet := self.stub.arrived()) is not None:
                    self._stopped(packet)
            if self.control.fileno() in ready and not self._asking():
                return

    def _stopped(self, reply: bytes) -> None:
        """Tell GDB that the machine has stopped, if GDB had resumed it."""
        if self._gdb_waits:
            self._gdb_waits = False
            self._say(encoded(reply))

    def _to_stub(self, gdb: socket.socket) -> bool:
        """Handle the packets that GDB has sent; false if GDB detaches or is gone."""
        try:
            piece = gdb.recv(PIECE)
        except OSError:
            piece = b""
        self._from_gdb.feed(piece)
        try:
            while (packet := self._from_gdb.next()) is not None:
                if packet is Sign.INTERRUPT:
                    self.stub.interrupt()
                    continue
                if isinstance(packet, Sign):
                    raise Malformed("a request to send a packet again")
                if packet[:1] == DETACH:
                    # GDB detaches when its input is closed; the relay alone decides how the
                    # machine is left
                    return False
                self._say(ACKNOWLEDGED)
                self._pass(packet)
        except Malformed as error:
            raise StubLost(f"GDB has sent {error}") from error
        return bool(piece)

    def _pass(self, question: bytes) -> None:
        """Pass a question of GDB's on to the stub, or answer it here."""
        if self.stub.runs:
            raise StubLost(f"GDB asks '{shown(question)}' of a machine that runs")
        form = answers.form_of(question, answers.FOR_GDB)
        if form is not None:
            self.stub.send(question)
            self._gdb_waits = form is answers.GO
            if not self._gdb_waits:
                answer = self.stub.answer(self.stub.deadline())
                self._say(encoded(self._of_its_size(question, answer)))
        elif question.startswith(b"qSupported"):
            self._say(encoded(answers.abilities(self.stub.ask(SUPPORTED))))
        elif part := DESCRIPTION_PART.fullmatch(question):
            self._say(encoded(self._part(*part.groups())))
        else:
            self.stub.refuse(question)
            self._say(encoded(answers.local_answer(question)))

    def _of_its_size(self, question: bytes, answer: bytes) -> bytes:
        """Return an answer; check that a register has as many bytes as the description says."""
        if question[:1] == b"p" and answer[:1] != b"E" and self._description is not None:
            size = self._description.sizes.get(int(question[1:], 16))
            if size is not None and len(answer) not in (0, 2 * size):
                raise ProtocolBroken(
                    f"the stub was asked '{shown(question)}' (a register of {size} bytes), and "
                    f"'{shown(answer)}' came"
                )
        return answer

    def _part(self, name: bytes, begin: bytes, length: bytes) -> bytes:
        """Return a part of the machine's description, which GDB gets as a single file."""
        if self._description is None:
            self._description = self.stub.described()
        if self._description is None:
            return answers.UNKNOWN
        if name != ROOT.encode():
            return answers.NO_SUCH_FILE
        text = self._description.text
        first = int(begin, 16)
        after = first + min(int(length, 16), answers.PACKET_SIZES[-1])
        return (b"l" if after >= len(text) else b"m") + text[first:after]

    def _say(self, data: bytes) -> None:
        if self.gdb is not None:
            with contextlib.suppress(OSError):
                self._guard.send(self.gdb, data, time.monotonic() + PATIENCE)

    def _asking(self) -> bool:
        """Answer the requests that the inspector has sent; false if it is gone."""
        try:
            piece = self.control.recv(PIECE)
            self._asked += piece
            while (end := self._asked.find(b"\n")) >= 0:
                line = bytes(self._asked[:end])
                del self._asked[: end + 1]
                try:
                    kind, answer = b"ok", self._answer(*line.decode().partition(" ")[::2])
                except StubRefused as error:
                    kind, answer = b"error", str(error).encode()
                data = b"%b %d\n" % (kind, len(answer)) + answer
                self._guard.send(self.control, data, time.monotonic() + PATIENCE)
        except OSError:
            return False
        return bool(piece)

    def _answer(self, what: str, given: str) -> bytes:
        if what == "about":
            return SEPARATOR.join(self.about).encode()
        if what == "ends":
            places = self.stub.end.getpeername(), self.stub.end.getsockname()
            return SEPARATOR.join(f"{place[0]} {place[1]}" for place in places).encode()
        if what == "hold":
            self.stub.hold()
            return b""
        if self.stub.runs:
            raise StubRefused("the machine runs")
        if what == "go":
            self.stub.send(GO)
            return b""
        if what == "read":
            try:
                numbers = [int(word, 16) for word in given.split()]
                ranges = list(zip(numbers[::2], numbers[1::2], strict=True))
            except ValueError:
                raise StubRefused(f"'{shown(given)}' is no list of addresses and lengths") from None
            return self.stub.read(ranges)
        if what == "packet" and answers.BREAKPOINT.question.fullmatch(given.encode()):
            return self.stub.ask(given.encode())
        if what == "monitor" and COMMANDS.fullmatch(given):
            return self.stub.monitor(given).encode()
        raise StubRefused(f"'{what} {given}' is none of what may be asked")


def _tell(control: socket.socket, problem: str) -> None:
    """Leave a message for the inspector, which it reads as the answer to its next request."""
    text = problem.encode()
    with contextlib.suppress(OSError):
        control.send(b"lost %d\n" % len(text) + text)


def _connected(host: str, port: int, guard: Guard) -> socket.socket:
    """Return a connection to the stub.

    Raises:
        OSError: no connection can be made.
        StubSilent: nothing answers there.
    """
    # The C library looks the name up, and cannot watch for the inspector's end meanwhile: an
    # alarm limits the time.
    signal.alarm(GIVEN_UP)
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    signal.alarm(0)
    deadline = time.monotonic() + terms.SILENT
    problem = 0
    for family, kind, protocol, _, address in places:
        end = socket.socket(family, kind, protocol)
        end.setblocking(False)
        problem = end.connect_ex(address)
        if problem == errno.EINPROGRESS:
            guard.ready({end.fileno(): select.POLLOUT}, deadline)
            problem = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not problem:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return end
        end.close()
    raise OSError(problem, os.strerror(problem))


def main() -> None:
    """Serve one inspector and end.

    The arguments of the command are the stub's host and port, the descriptor
    of the socket to the inspector, that of the socket to which GDB connects
    (or -1), the name of the latter in the file system, and ``resume`` for a
    machine that is to run afterwards, even if it was found stopped.
    """
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # SIGTERM becomes a byte in a pipe, which the guard sees wherever it waits
    signalled, noticed = os.pipe()
    os.set_blocking(noticed, False)
    signal.set_wakeup_fd(noticed)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    host, port, asks, listens, name, found = sys.argv[1:]
    control = socket.socket(fileno=int(asks))
    control.setblocking(False)
    guard = Guard(control.fileno(), signalled)
    try:
        code = _served(guard, (host, int(port)), control, (int(listens), name), found)
    except Abandoned:
        code = LEFT
    # nothing is left to do, and the inspector waits for the exit code
    os._exit(code)


def _served(
    guard: Guard,
    place: tuple[str, int],
    control: socket.socket,
    listener: tuple[int, str],
    found: str,
) -> int:
    """Connect to GDB and to the stub, and relay; return the exit code."""
    gdb = None
    descriptor, name = listener
    if descriptor >= 0:
        try:
            gdb, found = _gdb_of(socket.socket(fileno=descriptor), control, guard, found)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)
                os.rmdir(os.path.dirname(name))
    log = Log()
    try:
        stub = Stub(_connected(*place, guard), guard, log)
    except (OSError, StubSilent) as error:
        what = SILENCE if isinstance(error, StubSilent) else UNREACHED
        _tell(control, f"{what} {getattr(error, 'strerror', None) or error}")
        return LEFT
    with contextlib.suppress(OSError):
        confine(Limits(MEMORY, writes=log.kept))
    return _relayed(Relay(stub, gdb, control, guard), guard, found)


def _relayed(relay: Relay, guard: Guard, found: str) -> int:
    """Relay until one of the three ends goes away, and leave the machine; return the exit code."""
    stub = relay.stub
    keep_stopped = found == KEEP_STOPPED
    word, problem = UNREACHED, ""
    try:
        keep_stopped = _begun(relay, guard, found)
        word, problem = GONE, "GDB has ended"
        relay.serve()
    except Exception as error:  # no error may leave the machine stopped
        began = word == GONE
        word, problem = _word(error, word), str(error)
        if not began or word == BROKEN:
            # the stub does not keep to the protocol, so its answers are not waited for
            if not keep_stopped:
                stub.farewell()
            _tell(relay.control, f"{word} {problem}")
            return LEFT
    _leave(guard)
    try:
        stub.leave(keep_stopped)
        return LEFT
    except Exception:  # as above
        return LEFT if stub.ended else STUCK
    finally:
        _tell(relay.control, f"{word} {problem}")


def _begun(relay: Relay, guard: Guard, found: str) -> bool:
    """Find out how the machine was found, even if the inspector has gone away meanwhile."""
    try:
        return relay.begin(found)
    except Abandoned:
        _leave(guard)
        relay.stub.catch_up()
        return relay.begin(found)


def _word(error: Exception, stage: str) -> str:
    """Return the first word of the message that tells the inspector of an error."""
    words = {StubRefused: FOREIGN, ProtocolBroken: BROKEN, OtherMachine: OTHER}
    if stage == UNREACHED:
        words[StubSilent] = SILENCE
    return next((word for kind, word in words.items() if isinstance(error, kind)), stage)


def _leave(guard: Guard) -> None:
    """Make sure that this process ends soon, whatever the stub does."""
    if not guard.leaving:
        signal.alarm(GIVEN_UP)
        guard.leave()


def _gdb_of(
    listener: socket.socket, control: socket.socket, guard: Guard, found: str
) -> tuple[socket.socket, str]:
    """Wait until GDB connects; the inspector may say before how the machine was found."""
    wanted = {end.fileno(): select.POLLIN for end in (listener, control)}
    while True:
        ready = guard.ready(wanted)
        if control.fileno() in ready:
            if control.recv(len(KEEP_STOPPED), socket.MSG_PEEK) == KEEP_STOPPED.encode():
                found = control.recv(len(KEEP_STOPPED)).decode()
            else:
                del wanted[control.fileno()]
        elif listener.fileno() in ready:
            gdb = listener.accept()[0]
            gdb.setblocking(False)
            return gdb, found
