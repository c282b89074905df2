"""A running QEMU machine, attached to through GDB.

GDB is always the one that stops the machine and lets it go on.  Bytes come
through it too, in the stub's physical mode, or straight from the QEMU
process where that is on this host and may be read.

The machine is let go on right after attaching.  A read outside ``stopped()``
is allowed: straight from the process it does not stop the machine, through
GDB it stops it for just that read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import time
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from inspector.errors import InspectorError, MemoryNotReadable, Step, TargetNotSupported
from inspector.memory.base import addresses
from inspector.memory.direct import DirectMemory, hva_of, is_taken, process_behind
from inspector.memory.mi import GdbError, GdbProcess, GdbSilent
from inspector.memory.ram import RamMap, large_blocks, parse_mtree
from inspector.memory.stub import StubMemory

__all__ = ["LiveMachine"]

CONNECT_TIMEOUT = 10.0
PROBE_LENGTH = 1 << 12
REMOTE_TIMEOUT = 30
POWER = "powerpc:common64"
REPLAYING = "Replaying execution"


class LiveMachine:
    """An attached machine; use as a context manager.

    Args:
        host: where QEMU's stub listens.
        port: its TCP port.
        read_path: ``"auto"``, ``"gdb"`` or ``"direct"``.

    A machine that replays a recording is not let go on: it is left standing
    where it was found, and ``replays`` is true.

    ``stops`` holds the length in seconds of every time the machine stood
    still for this session, as seen from here (so it is an upper bound).

    Raises:
        TargetNotSupported: nothing answers, or it is not QEMU emulating a
            64-bit POWER machine, or the forced read path is not possible.
    """

    def __init__(self, host: str, port: int, read_path: str = "auto") -> None:
        self.host, self.port = host, port
        self.stops: list[float] = []
        self.read_path = ""
        self.replays = False
        self._stop_began = 0.0
        self._depth = 0
        self._attached = False
        self._going = False
        """Whether the machine was certainly let go on, and not interrupted since."""
        self._physical = False
        if _is_local(host) and is_taken(port):
            # A connection left waiting would be served later, and stop the machine for nobody.
            raise TargetNotSupported(
                f"another client is attached to {host}:{port}, and QEMU's stub serves one at a "
                "time; end that one first",
                Step.PORT,
            )
        self._process = process_behind(port) if read_path != "gdb" and _is_local(host) else None
        self.gdb = GdbProcess()
        try:
            self._attach()
            self._ram = self._one_block() or parse_mtree(self.monitor("info mtree -f"))
            self.memory: StubMemory | DirectMemory = self._choose(read_path)
            self._resume()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LiveMachine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def stopped_seconds(self) -> float:
        """How long the machine stood still in all."""
        return sum(self.stops)

    def close(self) -> None:
        """Put physical mode back, let the machine go on and detach; never raises.

        A machine that runs is in virtual mode and has nothing of GDB's in it,
        so the connection is cut: to detach GDB would have to stop it again.
        Signals wait until this is done: it must not be interrupted a second time.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            if self._going:
                self.gdb.kill()
            elif self._attached:
                with contextlib.suppress(InspectorError):
                    if self.gdb.running:
                        self.interrupt()
                with contextlib.suppress(InspectorError):
                    self.leave_physical()
                with contextlib.suppress(InspectorError):
                    self.gdb.command("-target-disconnect" if self.replays else "-target-detach")
                    self._note_resumed()
            self._attached = self._going = False
            self.gdb.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the machine still for the length of a block; blocks may be nested."""
        if self._depth == 0:
            self._interrupt()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.leave_physical()
                self._resume()

    def for_reading(self) -> contextlib.AbstractContextManager[None]:
        """Return a block in which reading causes no stops of its own.

        On the direct path it does not stop the machine at all.
        """
        if isinstance(self.memory, DirectMemory):
            return contextlib.nullcontext()
        return self.stopped()

    def read_physical(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Read ranges of physical memory through GDB, in one stop."""
        with self.stopped():
            if not self._physical:
                self._physical = True
                self.packet("Qqemu.PhyMemMode:1")
            return self.gdb.read_ranges(ranges)

    def interrupt(self) -> None:
        """Stop the machine at once and wait until it stands still."""
        self.gdb.command("-exec-interrupt")
        self.gdb.wait_stopped()

    def monitor(self, text: str) -> str:
        """Run a command of QEMU's monitor and return what it printed."""
        return self.gdb.console(f"monitor {text}")

    def packet(self, text: str) -> str:
        """Send a packet of the remote protocol and return the answer."""
        answer = self.gdb.console(f"maintenance packet {text}")
        return answer.rpartition('received: "')[2].partition('"')[0]

    def leave_physical(self) -> None:
        """Put the stub back into virtual mode, if it is in physical mode."""
        if self._physical:
            self.packet("Qqemu.PhyMemMode:0")
            self._physical = False

    def _attach(self) -> None:
        place = f"{self.host}:{self.port}"
        for setting in ("mi-async on", "tcp auto-retry off", "confirm off", "width 0"):
            self.gdb.command(f"-gdb-set {setting}")
        self._stop_began = time.perf_counter()
        # Set first: after a Ctrl-C in between, close() must detach.
        self._attached = True
        try:
            self.gdb.command(f"-target-select remote {place}", CONNECT_TIMEOUT)
        except GdbSilent as error:
            raise TargetNotSupported(
                f"{place} takes the connection and says nothing: it is no GDB stub, or another "
                "client is attached to it (QEMU serves one at a time; end that one first)",
                Step.PORT,
            ) from error
        except GdbError as error:
            if not _is_known(self.host):
                raise TargetNotSupported(
                    f"cannot attach to {place}: there is no host '{self.host}'; give gdb:HOST:PORT "
                    "with a name or an address that is reachable from here",
                    Step.PORT,
                ) from error
            raise TargetNotSupported(
                f"cannot attach to a GDB stub at {place}: {str(error).split(': ', 1)[-1]} "
                "Start QEMU with '-gdb tcp:127.0.0.1:PORT', and see that no other GDB is attached",
                Step.PORT,
            ) from error
        self.gdb.command(f"-gdb-set remotetimeout {REMOTE_TIMEOUT}")
        mode = self.packet("qqemu.PhyMemMode")
        if mode not in ("0", "1"):
            raise TargetNotSupported(
                f"the stub at {place} has no physical mode, so it is not QEMU's (or older than "
                "4.1); give the port that QEMU was started with ('-gdb tcp:127.0.0.1:PORT')",
                Step.QEMU,
            )
        # A client that was killed may have left the stub in physical mode; nobody means to.
        self._physical = mode == "1"
        self.leave_physical()
        self.replays = REPLAYING in self.monitor("info replay")
        architecture = self.gdb.console("show architecture")
        if POWER not in architecture:
            raise TargetNotSupported(
                f"the machine at {place} is not a 64-bit POWER machine: {architecture.strip()} "
                "Attach to the QEMU (qemu-system-ppc64) that runs the KVM-HV host",
                Step.POWER,
            )

    def _one_block(self) -> RamMap | None:
        """Return the map of a machine whose memory is one block that begins at 0, None for others.

        Three short answers tell; GDB takes ten milliseconds for the map of all there is.
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
        return RamMap(addresses([0]), addresses([size]))

    def _hva(self, address: int) -> int:
        return hva_of(self.monitor(f"gpa2hva {address:#x}"))

    def _choose(self, read_path: str) -> StubMemory | DirectMemory:
        through_gdb = StubMemory(self.read_physical, self._ram)
        if read_path == "gdb":
            self.read_path = "GDB's remote protocol"
            return through_gdb
        try:
            direct = self._direct(through_gdb)
        except InspectorError as error:
            if read_path == "direct":
                raise
            self.read_path = f"GDB's remote protocol ({error})"
            return through_gdb
        self.read_path = f"the memory of QEMU process {direct.pid}"
        return direct

    def _direct(self, through_gdb: StubMemory) -> DirectMemory:
        """Open the direct path and prove that it shows the same memory as the stub."""
        if not _is_local(self.host):
            raise TargetNotSupported(f"{self.host} is not this host")
        pid = self._process
        if pid is None:
            raise TargetNotSupported(
                f"the process behind port {self.port} is not visible from here"
            )
        hvas = [self._hva(int(start)) for start in self._ram.starts]
        direct = DirectMemory(pid, self._ram, addresses(hvas))
        where = addresses([int(start) for start in self._ram.starts])
        where = np.concatenate((where, where[:1] + self._ram.sizes[:1] // np.uint64(2)))
        length = int(min(PROBE_LENGTH, self._ram.sizes.min()))
        self._depth += 1
        try:
            expected = through_gdb.read_many(where, length)
            self.leave_physical()
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

    def _interrupt(self) -> None:
        if self.replays:
            return
        self._going = False
        self._stop_began = time.perf_counter()
        self.interrupt()

    def _resume(self) -> None:
        if self.replays:
            return
        self.gdb.resume()
        self._going = True
        self._note_resumed()

    def _note_resumed(self) -> None:
        if self._stop_began and not self.replays:
            self.stops.append(time.perf_counter() - self._stop_began)
            self._stop_began = 0.0


def _is_known(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except (OSError, ValueError):
        return False


def _is_local(host: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        for info in socket.getaddrinfo(host, None):
            if ipaddress.ip_address(info[4][0]).is_loopback:
                return True
    return host in ("", socket.gethostname())
