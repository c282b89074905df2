"""A running QEMU machine, attached to through GDB.

The relay on GDB's connection stops the machine and lets it run, and only the
relay knows whether it runs.  GDB attaches, and takes the machine for stopped
from then on; it lets the machine run only between two stops at breakpoints
(``control``).  Bytes come over the relay's connection, in the stub's physical
mode, or straight from the QEMU process if that is on this host and may be
read.

The machine resumes right after attaching.  A machine that was found stopped
stays stopped to the end.  A read outside ``stopped()`` is allowed: straight
from the process it does not stop the machine; over GDB's connection it stops
the machine for just that read.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from inspector.errors import InspectorError, MemoryNotReadable, Stage, TargetNotSupported, shown
from inspector.live import terms
from inspector.live.ahead import behind
from inspector.live.connection import Connection
from inspector.live.direct import DirectMemory, hva_of, see_that_it_is_qemu
from inspector.live.lender import SIGNALS, ConnectionLost
from inspector.live.mi import GdbError, GdbProcess
from inspector.live.mtree import RamMap, large_blocks, parse_mtree
from inspector.live.processes import holds_end, is_local, is_taken, place_of
from inspector.live.stub_memory import StubMemory
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges

__all__ = ["LiveMachine", "resumed"]

CONNECT_TIMEOUT = 2 * terms.SILENT
PROBE_LENGTH = terms.CHUNK
REMOTE_TIMEOUT = 30
POWER = "powerpc:common64"


class LiveMachine:
    """An attached machine; use as a context manager.

    Args:
        host: where QEMU's stub listens.
        port: its TCP port.
        read_path: ``"auto"``, ``"gdb"`` or ``"direct"``.
        keep_stopped: whether the machine is known to be stopped, and is to be
            left so.  If it is false, the machine's QEMU is watched to find
            that out, provided that it is a process of this host.

    ``keep_stopped`` says that the machine is never let run, because it was
    found stopped.  A machine that replays a recording always is, and
    ``replays`` is true then.

    ``stops`` holds the length in seconds of every stop of the machine for this
    session, as seen from here (so it is an upper bound).

    Raises:
        TargetNotSupported: nothing answers, or it is not QEMU emulating a
            64-bit POWER machine, or the forced read path is not possible.
    """

    def __init__(
        self, host: str, port: int, *, read_path: str = "auto", keep_stopped: bool = False
    ) -> None:
        self.host, self.port = host, port
        self.stops: list[float] = []
        self.read_path = ""
        self.replays = False
        self.keep_stopped = keep_stopped
        self._stop_began = 0.0
        self._depth = 0
        self._hvas: dict[int, int] = {}
        """Answers to ``gpa2hva`` while attaching: both steps that ask for them are in one stop."""
        _see_that_it_is_free(host, port)
        self._process, activity = behind(host, port)
        self.gdb = GdbProcess()
        self._connection = Connection(host, port)
        try:
            if activity is not None and not keep_stopped:
                self.keep_stopped = activity.is_stopped()
            self._attach()
            self._ram = self._one_block() or parse_mtree(self.monitor("info mtree -f"))
            self._over_stub = StubMemory(self._connection.read_ranges, self._ram.ram, self.stopped)
            self.memory: StubMemory | DirectMemory = self._choose(read_path)
            self._let_go()
        except BaseException as error:
            self.close(error)
            raise

    def __enter__(self) -> LiveMachine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, GdbError):
                # if the relay has closed GDB's connection, its own error is the better one
                with contextlib.suppress(ConnectionLost):
                    self._connection.about()
        finally:
            self.close(error)

    @property
    def stopped_seconds(self) -> float:
        """How many seconds the machine was stopped in all."""
        return sum(self.stops)

    def close(self, after: BaseException | None = None) -> None:
        """Leave the machine as it was found; signals wait until this is done.

        Args:
            after: the error that ends the session.

        Raises:
            TargetNotSupported: the machine could not be let run.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            left = self._connection.close()
            self._note_resumed()
            self.gdb.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if not left:
            raise _stuck(self.host, self.port, after)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the machine stopped for the length of a block; blocks may be nested.

        GDB is not asked to stop it, because GDB would look at registers and
        at the stack first.
        """
        if self._depth == 0 and not self.keep_stopped:
            self._stop_began = time.perf_counter()
            self._connection.hold()
        self._depth += 1
        try:
            yield
        except BaseException:
            # after an interrupted request the relay cannot be asked; ``close`` resumes the machine
            with contextlib.suppress(InspectorError):
                self._end_stop()
            raise
        self._end_stop()

    def _end_stop(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._let_go()

    def for_reading(self) -> contextlib.AbstractContextManager[None]:
        """Return a block in which reading causes no stops of its own.

        On the direct path it does not stop the machine at all.
        """
        if isinstance(self.memory, DirectMemory):
            return contextlib.nullcontext()
        return self.stopped()

    def forget(self) -> None:
        """Drop the bytes that were kept, because the machine runs again or its replay is moved."""
        self._over_stub.forget()

    def monitor(self, text: str) -> str:
        """Run a command of QEMU's monitor and return what it printed."""
        return self._connection.monitor(text)

    def packet(self, text: str) -> str:
        """Send a packet of the remote protocol and return the answer."""
        return self._connection.packet(text)

    def _attach(self) -> None:
        for setting in (
            *("mi-async on", "confirm off", "width 0"),
            f"remotetimeout {REMOTE_TIMEOUT}",
        ):
            self.gdb.command(f"-gdb-set {setting}")
        if self.keep_stopped:
            self._connection.keep_stopped()
        self._stop_began = time.perf_counter()
        try:
            self.gdb.command(
                f"-target-select remote {self._connection.socket_name}", CONNECT_TIMEOUT
            )
            status, replay = self._connection.about()
        except ConnectionLost as error:
            raise _not_attached(self.host, self.port, error.said) from error
        except GdbError as error:
            try:
                self._connection.about()
            except ConnectionLost as lost:
                raise _not_attached(self.host, self.port, lost.said) from error
            raise
        self.replays = terms.REPLAYING in replay
        self.keep_stopped = self.keep_stopped or self.replays or not terms.ran(status)
        architecture = self.gdb.console("show architecture")
        if POWER not in architecture:
            raise _not_power(self.host, self.port, architecture.strip())

    def _one_block(self) -> RamMap | None:
        """Return the map of a machine whose memory is one block that begins at 0, None for others.

        Three short answers are enough to see that; the map of everything takes ten milliseconds.
        """
        blocks = large_blocks(self.monitor("info ramblock"))
        if len(blocks) != 1:
            return None
        _, size, hva = blocks[0]
        try:
            if [self._hva(0), self._hva(size - 1)] != [hva, hva + size - 1]:
                return None
        except TargetNotSupported:
            return None
        whole = Ranges(addresses([0]), addresses([size]))
        return RamMap(whole, whole)

    def _hva(self, address: int) -> int:
        if address not in self._hvas:
            self._hvas[address] = hva_of(self.monitor(f"gpa2hva {address:#x}"))
        return self._hvas[address]

    def _choose(self, read_path: str) -> StubMemory | DirectMemory:
        if read_path == "gdb":
            self.read_path = "GDB's remote protocol"
            return self._over_stub
        try:
            direct = self._direct()
        except InspectorError as error:
            if read_path == "direct":
                raise
            self.read_path = f"GDB's remote protocol ({error})"
            return self._over_stub
        self.read_path = f"the memory of QEMU process {direct.pid}"
        return direct

    def _direct(self) -> DirectMemory:
        """Open the direct path and prove that it shows the same memory as the stub."""
        if not is_local(self.host):
            raise TargetNotSupported(f"{self.host} is not this host")
        pid = self._process
        if pid is None:
            raise TargetNotSupported(
                f"the process behind port {self.port} is not visible from here"
            )
        if not holds_end(pid, *self._connection.ends()):
            raise TargetNotSupported(f"process {pid} does not serve port {self.port} any more")
        pieces = self._ram.pieces
        hvas = addresses([self._hva(start) for start in pieces.starts.tolist()])
        ends = addresses(
            [self._hva(start) for start in (pieces.starts + pieces.sizes - 1).tolist()]
        )
        if not np.array_equal(ends - hvas, pieces.sizes - np.uint64(1)):
            raise TargetNotSupported(
                "QEMU does not hold each block of the machine's memory in one piece"
            )
        see_that_it_is_qemu(pid, pieces, hvas)
        direct = DirectMemory(pid, self._ram, hvas)
        # the beginning, the middle and the end of every piece
        length = int(min(PROBE_LENGTH, pieces.sizes.min()))
        room = pieces.sizes - np.uint64(length)
        where = np.concatenate([pieces.starts + part for part in (0 * room, room // 2, room)])
        # the machine is stopped already, by attaching, so the read must not stop and resume it
        self._depth += 1
        try:
            expected = self._over_stub.read_many(where, length)
        finally:
            self._depth -= 1
        try:
            same = np.array_equal(expected.data, direct.read_many(where, length).data)
        except MemoryNotReadable:
            same = False
        if not same:
            raise TargetNotSupported(
                f"process {pid} behind port {self.port} does not hold the machine's memory "
                "(a forwarded port?)"
            )
        return direct

    def _let_go(self) -> None:
        self.forget()
        if not self.keep_stopped:
            self._connection.go()
            self._note_resumed()

    def _note_resumed(self) -> None:
        if self._stop_began and not self.keep_stopped:
            self.stops.append(time.perf_counter() - self._stop_began)
            self._stop_began = 0.0


def resumed(host: str, port: int) -> str:
    """Let a machine run, however it was found; return the state that QEMU reported before.

    Raises:
        TargetNotSupported: no connection can be made, or the machine does not run again.
    """
    _see_that_it_is_free(host, port)
    relay_to = Connection(host, port, resume=True)
    try:
        found, _ = relay_to.about()
    except ConnectionLost as error:
        raise _not_attached(host, port, error.said) from error
    finally:
        left = relay_to.close()
    if not left:
        raise _stuck(host, port)
    return shown(found)


def _not_power(host: str, port: int, what: str) -> TargetNotSupported:
    return TargetNotSupported(
        f"the machine at {place_of(host, port)} is not a 64-bit POWER machine: {shown(what)} "
        "Attach to the QEMU (qemu-system-ppc64) that runs the KVM-HV host",
        Stage.POWER,
    )


def _stuck(host: str, port: int, after: BaseException | None = None) -> TargetNotSupported:
    before = f"{after}; after that, " if isinstance(after, InspectorError) else ""
    return TargetNotSupported(
        f"{before}the machine at {place_of(host, port)} could not be resumed, because its stub "
        f"does not answer; run 'inspector resume gdb:{place_of(host, port)}' when it can be reached"
    )


def _not_attached(host: str, port: int, said: str) -> TargetNotSupported:
    """Return the error that explains why a relay is not connected to a stub.

    Args:
        host: where the stub listens.
        port: its TCP port.
        said: the last message of the relay, which begins with a word of ``terms``.
    """
    place = place_of(host, port)
    what, _, reason = said.partition(" ")
    if what == terms.OTHER:
        return _not_power(host, port, f"its architecture is {reason}.")
    if what == terms.FOREIGN:
        return TargetNotSupported(
            f"the stub at {place} has no physical mode, so it is not QEMU's (or older than "
            "4.1); give the port that QEMU was started with ('-gdb tcp:127.0.0.1:PORT')",
            Stage.QEMU,
        )
    if what == terms.SILENCE:
        return TargetNotSupported(
            f"{place} takes the connection and says nothing: it is not a GDB stub, or another "
            "client is attached to it (QEMU serves one at a time; end that one first), or the "
            f"network fails; if the machine is stopped, 'inspector resume gdb:{place}' lets "
            "it run",
            Stage.PORT,
        )
    if what == terms.UNREACHED and not _is_known(host):
        return TargetNotSupported(
            f"cannot attach to {place}: there is no host '{host}'; give gdb:HOST:PORT "
            "with a name or an address that is reachable from here",
            Stage.PORT,
        )
    return TargetNotSupported(
        f"cannot attach to a GDB stub at {place}: {reason}. "
        "Start QEMU with '-gdb tcp:127.0.0.1:PORT', and see that no other GDB is attached",
        Stage.PORT,
    )


def _see_that_it_is_free(host: str, port: int) -> None:
    """Refuse a stub of this host that serves another client.

    QEMU would serve the waiting connection later, and stop the machine for a client that is gone.
    """
    if is_local(host) and is_taken(port):
        raise TargetNotSupported(
            f"another client is attached to {place_of(host, port)}, and QEMU's stub serves one at "
            "a time; end that one first",
            Stage.PORT,
        )


def _is_known(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False
