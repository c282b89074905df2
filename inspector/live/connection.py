"""The inspector's end of the relay, the process between GDB and QEMU's stub."""

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
from inspector.live.processes import Endpoint, place_of

__all__ = ["Connection"]

MODULE = "inspector.live.relay"
BATCH = 1 << 12
"""Ranges in one request; the relay has many packets under way at once."""
FAREWELL = 12.0
"""Seconds to wait until a relay has left the machine; it ends earlier by itself, in any case."""
PATIENCE = 4 * terms.SILENT + terms.PATIENCE
"""Seconds to wait for an answer of the relay, which itself waits so long for the stub at most, and
then reports that the stub is silent."""


class Connection:
    """A relay that was just started; it connects to the stub when GDB connects to it.

    Args:
        host: where QEMU's stub listens.
        port: its TCP port.
        resume: connect at once, without a GDB, and let the machine run at the
            end, even if it was found stopped.
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
        except BaseException:
            ours.close()
            self._remove_socket()
            raise
        finally:
            theirs.close()
            if listener is not None:
                listener.close()
        self._place = place_of(host, port)
        self._lender = Lender(ours, BATCH, PATIENCE)

    def keep_stopped(self) -> None:
        """Tell the relay to leave the machine stopped; only possible before GDB connects."""
        self._lender.tell(terms.KEEP_STOPPED)

    def about(self) -> tuple[str, str]:
        """Return QEMU's answers to ``info status`` and ``info replay`` when it was connected to.

        Raises:
            ConnectionLost: the relay has no connection; the first word of ``said`` says why.
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
        """Let a machine that is held run again."""
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
        """Explain to the user how a stub has broken the protocol."""
        try:
            yield
        except ConnectionLost as error:
            what, _, reason = error.said.partition(" ")
            if what != terms.BROKEN:
                raise
            raise TargetNotSupported(
                f"{self._place} does not speak as QEMU's stub does: {reason}. Nothing more of it "
                "is used; give the port that QEMU was started with ('-gdb tcp:127.0.0.1:PORT'). "
                f"If it is a machine that is stopped, 'inspector resume gdb:{self._place}' "
                "lets it run",
                Stage.QEMU,
            ) from error

    def close(self) -> bool:
        """Have the relay leave the machine as it was found; false if that was not possible."""
        self._lender.close()
        try:
            return self._process.wait(FAREWELL) != terms.STUCK
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        finally:
            # the relay removes the socket itself, unless it was killed before
            self._remove_socket()

    def _remove_socket(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.socket_name)
            os.rmdir(os.path.dirname(self.socket_name))


def _place(text: str) -> Endpoint:
    address, _, port = text.rpartition(" ")
    return Endpoint(ipaddress.ip_address(address), int(port))


def _listening() -> tuple[socket.socket, str]:
    """Return a socket in a folder that only this user can enter, and its name.

    Raises:
        TargetNotSupported: the socket cannot be made.
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
