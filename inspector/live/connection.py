"""The inspector's end of the relay, which stands between GDB and QEMU's stub."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator

from inspector.errors import MemoryNotReadable, Stage, TargetNotSupported
from inspector.live import confine, terms
from inspector.live.lender import ConnectionLost, Lender, RequestRefused
from inspector.live.processes import Endpoint

__all__ = ["Connection"]

MODULE = "inspector.live.relay"
BATCH = 1 << 12
"""Ranges in one request; the relay has many packets under way at once."""
FAREWELL = 12.0
"""Seconds in which a relay leaves the machine, or cannot; it ends by itself before."""
PATIENCE = 4 * terms.SILENT + terms.PATIENCE
"""Seconds in which a relay answers: that much it gives the stub itself, and says so."""


class Connection:
    """A relay that was just started; it connects to the stub when GDB connects to it.

    Args:
        host: where QEMU's stub listens.
        port: its TCP port.
        resume: connect at once, without a GDB, and let the machine go on at
            the end, however it was found.
    """

    def __init__(self, host: str, port: int, resume: bool = False) -> None:
        ours, theirs = socket.socketpair()
        listener, self.socket_name = (None, "") if resume else _listening()
        kept = [end.fileno() for end in (theirs, listener) if end is not None]
        try:
            self._process = subprocess.Popen(
                [
                    *(*confine.program(MODULE), host, str(port)),
                    str(theirs.fileno()),
                    str(listener.fileno() if listener is not None else -1),
                    self.socket_name,
                    terms.RESUME if resume else "",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=kept,
                start_new_session=True,
            )
        finally:
            theirs.close()
            if listener is not None:
                listener.close()
        self._place = f"{host}:{port}"
        self._lender = Lender(ours, BATCH, PATIENCE)

    def keep_stopped(self) -> None:
        """Say that the machine was found stopped and is to be left so; only before GDB connects."""
        self._lender.tell(terms.KEEP_STOPPED)

    def about(self) -> tuple[str, str]:
        """Return QEMU's answers to ``info status`` and ``info replay`` when it was connected to.

        Raises:
            ConnectionLost: it is not; what was said begins with what is the matter.
        """
        status, _, replay = self._ask("about").decode().partition(terms.SEPARATOR)
        return status, replay

    def ends(self) -> tuple[Endpoint, Endpoint]:
        """Return address and port of both ends of the connection: the stub's, and the relay's."""
        there, here = self._ask("ends").decode().split(terms.SEPARATOR)
        return _place(there), _place(here)

    def hold(self) -> None:
        """Stop the machine and wait until it is stopped."""
        self._ask("hold")

    def go(self) -> None:
        """Let a machine that is held go on."""
        self._ask("go")

    def packet(self, text: str) -> str:
        """Send a packet of the remote protocol and return the answer."""
        return self._ask(f"packet {text}").decode("ascii", "replace")

    def monitor(self, text: str) -> str:
        """Run a command of QEMU's monitor and return what it printed."""
        return self._ask(f"monitor {text}").decode("utf-8", "replace")

    def read_ranges(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of ranges of RAM.

        Raises:
            MemoryNotReadable: one of them cannot be read.
        """
        try:
            with self._explaining():
                return self._lender.read_ranges(ranges)
        except RequestRefused as error:
            address, _, rest = error.said.partition(" ")
            length, _, reason = rest.partition(" ")
            try:
                place = int(address, 16), int(length, 16)
            except ValueError:
                raise error from None
            raise MemoryNotReadable(*place, reason) from error

    def _ask(self, request: str) -> bytes:
        with self._explaining():
            return self._lender.ask(request)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say of a stub that breaks the protocol what it said."""
        try:
            yield
        except ConnectionLost as error:
            what, _, reason = error.said.partition(" ")
            if what != terms.BROKEN:
                raise
            raise TargetNotSupported(
                f"{self._place} does not speak as QEMU's stub does: {reason}. Nothing more of it "
                "is used; give the port that QEMU was started with ('-gdb tcp:127.0.0.1:PORT'). "
                f"Should it be a machine that stands still, 'inspector resume gdb:{self._place}' "
                "lets it go on",
                Stage.QEMU,
            ) from error

    def close(self) -> bool:
        """Have the machine left as it was found; false if that was not possible."""
        self._lender.close()
        try:
            return self._process.wait(FAREWELL) != terms.STUCK
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            # the relay does this itself, unless it was ended before
            with contextlib.suppress(OSError):
                os.unlink(self.socket_name)
                os.rmdir(os.path.dirname(self.socket_name))


def _place(text: str) -> Endpoint:
    address, _, port = text.rpartition(" ")
    return Endpoint(ipaddress.ip_address(address), int(port))


def _listening() -> tuple[socket.socket, str]:
    """Return a socket in a folder that nobody else may enter, and its name.

    Raises:
        TargetNotSupported: there is no place for it.
    """
    folder = ""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        folder = tempfile.mkdtemp(prefix="inspector-")
        name = os.path.join(folder, "gdb")
        listener.bind(name)
        listener.listen(1)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            os.rmdir(folder)
        raise TargetNotSupported(
            f"cannot make a socket for GDB in {folder or 'a folder for temporary files'}: {error}; "
            "set TMPDIR to a folder with a short name that can be written to",
            Stage.GDB,
        ) from error
    return listener, name
