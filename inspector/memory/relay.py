"""What stands between GDB and QEMU's stub, as a process of its own.

It passes GDB's packets on, and none that writes: the list of what may pass is
``PASSES``.  While GDB waits for nothing and the machine stands still, the
inspector asks here for memory, many packets under way at once, which is
several times as fast as through GDB.

It outlives both.  When the inspector or GDB goes away, in whatever way, the
machine gets its virtual mode back, loses the breakpoints that were set, and
runs on, or stands still if it stood still before.

What the inspector asks is a line of ASCII over a socket, and the answer the
line ``ok LENGTH`` or ``error LENGTH`` and so many bytes, as in ``served``:

    about                    what QEMU's monitor said at the beginning, in two parts
    read ADDRESS LENGTH ...  physical memory, hexadecimal; the bytes one after the other
    packet TEXT              a packet of the remote protocol, and its answer
    monitor TEXT             a command of QEMU's monitor, and what it printed
    hold, go                 stop the machine and let it go on, for which GDB needs no waking

This file is run by itself, so it imports nothing of the package.  With the
environment variable INSPECTOR_PACKET_LOG it adds a line to that file for each
packet: the time in seconds, ``>`` to the stub, ``<`` from it or ``!`` for one
that was not passed, and the packet, cut short.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import re
import select
import signal
import socket
import sys
import time

__all__ = [
    "CHUNK",
    "CLOSED",
    "FOREIGN",
    "GONE",
    "LEFT",
    "LOG",
    "PAUSED",
    "REPLAYING",
    "RESUME",
    "SEPARATOR",
    "SILENCE",
    "SILENT",
    "STANDS",
    "STUCK",
    "UNREACHED",
    "main",
]

LOG = "INSPECTOR_PACKET_LOG"
LOGGED = 96
"""Bytes of a packet that a log shows."""

PASSES = re.compile(
    rb"[?gpmHT]|[cs]$|vCont|vMustReplyEmpty|z|Z[1-4]"
    rb"|q(?!Rcmd)(?!Xfer:[^:]*:write)|Qqemu\.PhyMemMode:0$"
)
"""Packets that read, stop, go on, or set what stops; software breakpoints (Z0) are writes, and so
is going on at another address."""
COMMANDS = re.compile(r"info [\w -]+|gpa2hva 0x[0-9a-f]+|replay_(seek|break) \d+")
"""Commands of the monitor that may be given; none of them names a file."""
RUNS = re.compile(rb"c|s|vCont;[cCsS]")
GO = b"vCont;c"
FOR_FILES = re.compile(rb"F\w*,")
"""What a stub asks of GDB: to open, write or remove files of this host. QEMU asks for none."""
STOPPED = (b"T", b"S", b"W", b"X")
ENDED = (b"W", b"X")
WRITES = (b"M", b"X", b"G", b"P", b"Z")
REFUSED, UNKNOWN = b"E01", b""
OK = b"OK"
ACKNOWLEDGED = b"+"
INTERRUPT = b"\3"
DETACH = b"D"

CHUNK = 1 << 11
"""Bytes of memory to a packet: QEMU's have room for 4 KiB of hexadecimal digits."""
WINDOW = 64
"""Packets under way: their questions fit in any socket's buffer."""
SILENT = 10.0
"""Seconds to wait for the first word of a stub."""
PATIENCE = 30.0
"""Seconds to wait for any other."""
FAREWELL = 3.0
"""Seconds to wait for each answer when the machine is left."""
PAUSED = "VM status: paused"
REPLAYING = "Replaying execution"
SEPARATOR = "\0"
RESUME, STANDS = "resume", "stands"

UNREACHED, SILENCE, FOREIGN, GONE = "unreached", "silence", "foreign", "gone"
"""What the inspector is told when there is nobody to ask: how it begins."""
CLOSED = (
    "the machine's QEMU has ended, or closed the connection; should the machine stand still, "
    "'inspector resume gdb:HOST:PORT' lets it go on"
)
LEFT, STUCK = 0, 4
"""Exit codes: the machine was left as it was found, or could not be let go on."""


class Lost(Exception):  # noqa: N818
    """The stub does not answer, or has closed the connection."""


class Silent(Lost):
    """The stub has the connection and says nothing."""


class Refused(Exception):  # noqa: N818
    """What was asked cannot be done, and why."""


def framed(packet: bytes) -> bytes:
    """Return a packet as it is sent, behind the acknowledgement of the one before.

    QEMU takes the first byte that comes while the machine runs for a request
    to stop, and loses it: that is the acknowledgement.
    """
    return b"+$%b#%02x" % (packet, sum(packet) & 0xFF)


class Incoming:
    """What comes out of a socket, packet by packet."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = bytearray()
        self._at = 0

    def fill(self) -> bool:
        """Take what is there; false at the end."""
        try:
            piece = self._end.recv(1 << 18)
        except OSError:
            return False
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += piece
        return bool(piece)

    def packet(self) -> bytes | None:
        """Return the next whole packet or request to stop, None if there is none yet."""
        begin = self._buffer.find(b"$", self._at)
        between = begin if begin >= 0 else len(self._buffer)
        stop = self._buffer.find(INTERRUPT, self._at, between)
        if stop >= 0:
            self._at = stop + 1
            return INTERRUPT
        end = self._buffer.find(b"#", begin) if begin >= 0 else -1
        if end < 0 or len(self._buffer) < end + 3:
            return None
        self._at = end + 3
        return bytes(self._buffer[begin + 1 : end])


class Log:
    """The packets of a file that somebody asked for."""

    def __init__(self) -> None:
        name = os.environ.get(LOG)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(name, flags, 0o600) if name else None

    def note(self, sign: str, packet: bytes) -> None:
        """Add a line."""
        if self._file is not None:
            text = packet[:LOGGED].decode("latin-1").encode("unicode_escape").decode()
            # a disk that is full is no reason to leave the machine standing
            with contextlib.suppress(OSError):
                os.write(self._file, f"{time.monotonic():.6f} {sign} {text}\n".encode())


class Stub:
    """QEMU's stub at the other end of a connection."""

    def __init__(self, host: str, port: int) -> None:
        self._log = Log()
        self.end = socket.create_connection((host, port), timeout=SILENT)
        self.end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming = Incoming(self.end)
        self._why = False
        """Whether GDB has asked why the machine stands still: the answer looks like a stop."""
        self._breakpoints: set[bytes] = set()
        self.runs = False
        self._stopping = False
        """Whether the machine was asked to stop and has not said yet that it did."""
        self.ended = False
        self.patience = SILENT

    def send(self, *packets: bytes) -> None:
        """Send packets.

        Raises:
            Lost: the connection is closed.
        """
        for packet in packets:
            self._log.note(">", packet)
            if packet[:1] == b"Z":
                self._breakpoints.add(packet[1:])
            elif packet[:1] == b"z":
                self._breakpoints.discard(packet[1:])
            self._why = packet == b"?"
            self.runs = self.runs or bool(RUNS.match(packet))
        try:
            self.end.sendall(b"".join(map(framed, packets)))
        except OSError as error:
            raise Lost(f"the stub takes no packets: {error}") from error

    def refuse(self, packet: bytes) -> None:
        """Take note of a packet that is not sent."""
        self._log.note("!", packet)

    def interrupt(self) -> None:
        """Ask the machine to stop."""
        self._stopping = self.runs
        self._log.note(">", INTERRUPT)
        with contextlib.suppress(OSError):
            self.end.sendall(INTERRUPT)

    def hold(self) -> None:
        """Stop the machine and wait until it stands still.

        Raises:
            Refused: it may stop by itself, which GDB would have to know.
            Lost: it does not stop.
        """
        if self._breakpoints:
            raise Refused("breakpoints are set")
        if self.runs:
            self.interrupt()
        while self.runs:
            self.answer()
        if self.ended:
            raise Lost(CLOSED)

    def arrived(self) -> bytes | None:
        """Return the next packet that is there, None if there is none.

        A stop that nobody waits for is passed over: it is an earlier client's.
        So is what GDB would do with files of this host for a stub that asks.
        """
        while (packet := self._incoming.packet()) is not None:
            self._log.note("<", packet)
            if FOR_FILES.match(packet):
                continue
            if packet[:1] not in STOPPED:
                return packet
            if self.runs or self._why:
                self.runs = self._stopping = False
                self.ended = packet[:1] in ENDED
                return packet
        return None

    def fill(self) -> None:
        """Wait for more.

        Raises:
            Lost: nothing came in time, or nothing will.
        """
        if not select.select([self.end], [], [], self.patience)[0]:
            raise Silent(f"the stub said nothing for {self.patience:.0f} s")
        if not self._incoming.fill():
            self.ended = self.ended or self._undisturbed
            raise Lost(CLOSED)

    def answer(self) -> bytes:
        """Wait for a packet and return it.

        Raises:
            Lost: none came.
        """
        while (packet := self.arrived()) is None:
            self.fill()
        return packet

    def ask(self, packet: bytes) -> bytes:
        """Send a packet and return the answer."""
        self.send(packet)
        return self.answer()

    def monitor(self, command: str) -> str:
        """Return what QEMU's monitor prints for a command."""
        self.send(b"qRcmd," + binascii.hexlify(command.encode()))
        printed = b""
        while (answer := self.answer())[:1] == b"O" and answer != OK:
            try:
                printed += binascii.unhexlify(answer[1:])
            except ValueError as error:
                raise Lost(f"the stub printed {_text(answer)}") from error
        if answer != OK:
            raise Refused(f"QEMU's monitor did not do '{command}': {_text(answer)}")
        return printed.decode("utf-8", "replace")

    def read(self, ranges: list[tuple[int, int]]) -> bytes:
        """Return the bytes of ranges of physical memory, one after the other.

        The stub is in physical mode only meanwhile.

        Raises:
            Refused: it could not read one of them.
        """
        pieces = [
            (begin, min(CHUNK, start + length - begin))
            for start, length in ranges
            for begin in range(start, start + length, CHUNK)
        ]
        questions = [b"m%x,%x" % piece for piece in pieces]
        sent = min(WINDOW, len(questions))
        self.send(b"Qqemu.PhyMemMode:1", *questions[:sent])
        if self.answer() != OK:
            raise Refused("the stub has no physical mode")
        found: list[bytes] = []
        wrong = None
        while len(found) < len(questions):
            found.append(self.answer())
            if len(found[-1]) != 2 * pieces[len(found) - 1][1] and wrong is None:
                wrong = len(found) - 1
            if sent < len(questions) and sent - len(found) <= WINDOW // 2:
                more = questions[sent : len(found) + WINDOW]
                self.send(*more)
                sent += len(more)
        self.ask(b"Qqemu.PhyMemMode:0")
        if wrong is not None:
            address, length = pieces[wrong]
            raise Refused(f"{address:x} {length:x} the stub answered {_text(found[wrong])}")
        try:
            return binascii.unhexlify(b"".join(found))
        except ValueError as error:
            address, length = pieces[0]
            raise Refused(f"{address:x} {length:x} the stub answered no memory") from error

    def virtual(self) -> None:
        """Put virtual mode back where a client that was killed left physical mode."""
        mode = self.ask(b"qqemu.PhyMemMode")
        if mode not in (b"0", b"1"):
            raise Refused("the stub has no physical mode")
        if mode == b"1":
            self.ask(b"Qqemu.PhyMemMode:0")

    @property
    def _undisturbed(self) -> bool:
        """Whether the machine runs, and nothing was asked for that will stop it."""
        return self.runs and not self._stopping and not self._breakpoints

    def leave(self, stands: bool) -> None:
        """Let the machine go on, without anything of GDB's in it, or leave it standing.

        A machine that runs and has no breakpoints is left by closing the
        connection: to detach, it would have to be stopped.

        Raises:
            Lost: it could not be.
        """
        if self.ended or (self._undisturbed and not stands):
            return
        self.patience = FAREWELL
        if self.runs and not self._stopping:
            self.interrupt()
        while self.runs:
            self.answer()
        for place in list(self._breakpoints):
            self.ask(b"z" + place)
        if not stands and self.ask(b"D") != OK and self.ask(b"D;1") != OK:
            raise Lost("the stub does not let the machine go on")

    def farewell(self) -> None:
        """Have a stub that serves another client let the machine go on when it comes to us.

        It must not be asked twice to detach: QEMU ends at the second time.
        """
        with contextlib.suppress(OSError):
            self.end.sendall(framed(b"qSupported:multiprocess+") + framed(b"D;1"))


class Relay:
    """The three ends: the stub, GDB, and the inspector that asks."""

    def __init__(self, stub: Stub, gdb: socket.socket | None, control: socket.socket) -> None:
        self.stub, self.gdb, self.control = stub, gdb, control
        self._from_gdb = Incoming(gdb) if gdb is not None else None
        self._asked = bytearray()
        self.about = ("", "")

    def begin(self, found: str) -> bool:
        """Look how the machine was found; true if it shall be left standing."""
        self.about = self.stub.monitor("info status").strip(), self.stub.monitor("info replay")
        self.stub.virtual()
        self.stub.patience = PATIENCE
        if found == RESUME:
            return False
        return found == STANDS or self.about[0] != PAUSED or REPLAYING in self.about[1]

    def serve(self) -> None:
        """Pass on and answer until GDB or the inspector goes away.

        Raises:
            Lost: the stub did.
        """
        ends = [self.stub.end, self.control, *([self.gdb] if self.gdb is not None else ())]
        while True:
            ready, _, _ = select.select(ends, [], [])
            if self.gdb in ready and not self._to_stub():
                return
            if self.stub.end in ready:
                self.stub.fill()
                self._to_gdb()
            if self.control in ready and not self._asking():
                return

    def _to_stub(self) -> bool:
        """Pass on what GDB has sent, and to GDB what it waits for; false at its end."""
        assert self._from_gdb is not None
        alive = self._from_gdb.fill()
        while (packet := self._from_gdb.packet()) is not None:
            if packet == INTERRUPT:
                self.stub.interrupt()
                continue
            self._say(ACKNOWLEDGED)
            if packet[:1] == DETACH:
                # GDB's own farewell, when its input is closed; how the machine is left is said here
                return False
            if not PASSES.match(packet):
                self.stub.refuse(packet)
                self._say(framed(REFUSED if packet[:1] in WRITES else UNKNOWN)[1:])
                continue
            self.stub.send(packet)
            if not self.stub.runs:
                self._say(framed(self.stub.answer())[1:])
        return alive

    def _to_gdb(self) -> None:
        while (packet := self.stub.arrived()) is not None:
            self._say(framed(packet)[1:])

    def _say(self, data: bytes) -> None:
        if self.gdb is not None:
            with contextlib.suppress(OSError):
                self.gdb.sendall(data)

    def _asking(self) -> bool:
        """Answer what the inspector has asked; false at its end."""
        try:
            piece = self.control.recv(1 << 18)
            self._asked += piece
            while (end := self._asked.find(b"\n")) >= 0:
                line = bytes(self._asked[:end])
                del self._asked[: end + 1]
                try:
                    kind, answer = b"ok", self._answer(*line.decode().partition(" ")[::2])
                except Refused as error:
                    kind, answer = b"error", str(error).encode()
                self.control.sendall(b"%b %d\n" % (kind, len(answer)) + answer)
        except OSError:
            return False
        return bool(piece)

    def _answer(self, what: str, given: str) -> bytes:
        if what == "about":
            return SEPARATOR.join(self.about).encode()
        if what == "hold":
            self.stub.hold()
            return b""
        if self.stub.runs:
            raise Refused("the machine runs")
        if what == "go":
            self.stub.send(GO)
            return b""
        if what == "read":
            numbers = [int(word, 16) for word in given.split()]
            return self.stub.read(list(zip(numbers[::2], numbers[1::2], strict=True)))
        if what == "packet" and PASSES.match(given.encode()):
            return self.stub.ask(given.encode())
        if what == "monitor" and COMMANDS.fullmatch(given):
            return self.stub.monitor(given).encode()
        raise Refused(f"'{what} {given}' is none of what may be asked")


def _text(answer: bytes) -> str:
    return answer[:LOGGED].decode("ascii", "backslashreplace") or "nothing"


def _tell(control: socket.socket, problem: str) -> None:
    """Say what went wrong to whoever asks next."""
    text = problem.encode()
    with contextlib.suppress(OSError):
        control.sendall(b"lost %d\n" % len(text) + text)


def main() -> int:
    """Serve one inspector; the arguments are its descriptors, and where the stub is.

    Args: host, port, the descriptor to ask over, the one that GDB connects
    to (or -1), the name that one has in the file system, and ``resume`` for
    a machine that shall run afterwards, however it was found.
    """
    host, port, asks, listens, name, found = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(fileno=int(asks))
    gdb = None
    if int(listens) >= 0:
        try:
            gdb, found = _connected(socket.socket(fileno=int(listens)), control, found)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)
                os.rmdir(os.path.dirname(name))
        if gdb is None:
            return LEFT
    try:
        stub = Stub(host, int(port))
    except OSError as error:
        _tell(control, f"{UNREACHED} {error.strerror or error}")
        return LEFT
    relay = Relay(stub, gdb, control)
    try:
        stands = relay.begin(found)
    except Exception as error:  # whatever it is, the machine is not left standing for it
        if found != STANDS:
            stub.farewell()
        what = {Silent: SILENCE, Refused: FOREIGN}.get(type(error), UNREACHED)
        _tell(control, f"{what} {error}")
        return LEFT
    try:
        relay.serve()
        problem = "GDB has ended"
    except Exception as error:  # the same
        problem = str(error)
    try:
        stub.leave(stands)
        return LEFT
    except Lost:
        return LEFT if stub.ended else STUCK
    finally:
        _tell(control, f"{GONE} {problem}")


def _connected(
    listener: socket.socket, control: socket.socket, found: str
) -> tuple[socket.socket | None, str]:
    """Wait until GDB connects; how the machine was found may be said before."""
    ends = [listener, control]
    while True:
        ready, _, _ = select.select(ends, [], [])
        if control in ready:
            said = control.recv(len(STANDS), socket.MSG_PEEK)
            if not said:
                return None, found
            if said == STANDS.encode():
                found = control.recv(len(STANDS)).decode()
            else:
                ends = [listener]
        elif listener in ready:
            return listener.accept()[0], found


if __name__ == "__main__":
    # nothing is left to do, and somebody waits
    os._exit(main())
