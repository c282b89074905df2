"""A stub that makes GDB open files: the relay alone prevents that, and so do the limits alone."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from inspector.errors import InspectorError
from inspector.live import confine, gdb
from inspector.live.confine import Limits, landlock_version
from inspector.live.connection import Connection
from inspector.live.framing import Decoder, Sign, encoded
from inspector.live.mi import GdbProcess

pytestmark = pytest.mark.skipif(shutil.which("gdb-multiarch") is None, reason="no gdb-multiarch")

REGISTERS = [*(f"r{number}" for number in range(32)), "pc", "msr", "cr", "lr", "ctr", "xer"]
SIZES = {"cr": 32, "xer": 32}
DESCRIPTION = "".join(
    (
        "<target><architecture>powerpc:common64</architecture>",
        '<feature name="org.gnu.gdb.power.core">',
        *(
            f'<reg name="{name}" bitsize="{SIZES.get(name, 64)}" type="uint{SIZES.get(name, 64)}"/>'
            for name in REGISTERS
        ),
        "</feature></target>",
    )
).encode()
NAME_AT, DATA_AT = 0x1000, 0x2000
DATA = b"written by a stub"
MODES = b"601,1b6"
"""To write, to make and to cut off, as GDB's File-I/O numbers them; and the rights of the file."""


class HostileStub:
    """Serves one client, and asks it for a file when the machine is let run.

    Args:
        listener: where it listens.
        path: the file.
        framed: makes packets of the stub's requests.
    """

    def __init__(
        self, listener: socket.socket, path: Path, framed: Callable[[bytes], bytes]
    ) -> None:
        self._listener = listener
        self._memory = {NAME_AT: bytes(path) + b"\0", DATA_AT: DATA}
        length = len(self._memory[NAME_AT])
        self._wishes = [
            framed(b"Fopen,%x/%x,%b" % (NAME_AT, length, MODES)),
            framed(b"Fwrite,3,%x,%x" % (DATA_AT, len(DATA))),
            framed(b"Fclose,3"),
        ]
        self.replies: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def ended(self) -> None:
        """Wait until the client is gone."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        end, _ = self._listener.accept()
        decoder = Decoder(interrupts=True)
        try:
            while piece := end.recv(1 << 16):
                decoder.feed(piece)
                while (packet := decoder.next()) is not None:
                    if not isinstance(packet, Sign):
                        end.sendall(b"+" + self._answer(packet))
        except OSError:
            pass
        finally:
            end.close()

    def _answer(self, packet: bytes) -> bytes:
        if packet[:1] == b"F" or packet.startswith((b"vCont;c", b"c")):
            if packet[:1] == b"F":
                self.replies.append(packet)
            return self._wishes.pop(0) if self._wishes else encoded(b"W00")
        if packet[:1] == b"m":
            address, length = (int(word, 16) for word in packet[1:].split(b","))
            base = max((at for at in self._memory if at <= address), default=0)
            held = self._memory.get(base, b"")[address - base :][:length]
            return encoded(held.ljust(length, b"\0").hex().encode())
        if packet.startswith(b"qXfer:features:read:target.xml:"):
            begin, length = (int(word, 16) for word in packet.rpartition(b":")[2].split(b","))
            rest = DESCRIPTION[begin : begin + length]
            return encoded((b"m" if begin + length < len(DESCRIPTION) else b"l") + rest)
        if packet.startswith(b"qRcmd,"):
            return encoded(b"O" + b"VM status: paused".hex().encode()) + encoded(b"OK")
        if packet.startswith(b"qSupported"):
            return encoded(b"PacketSize=1000;qXfer:features:read+;multiprocess+")
        answers = {
            **{b"?": b"T05thread:p01.01;", b"qfThreadInfo": b"mp01.01", b"qsThreadInfo": b"l"},
            **{b"qC": b"QCp01.01", b"g": b"0" * 592, b"vCont?": b"vCont;c;C;s;S"},
            **{b"qqemu.PhyMemMode": b"0", b"qAttached:1": b"1"},
        }
        return encoded(answers.get(packet, b"OK" if packet[:1] in b"HTQD" else b""))


def plainly(content: bytes) -> bytes:
    return encoded(content)


def hidden(content: bytes) -> bytes:
    """GDB takes the second of two ``$`` for the beginning of a packet."""
    return b"$Y_$" + encoded(content)


@pytest.fixture
def unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make GDB run without limits."""

    def as_it_is(_: Limits, command: Sequence[str]) -> list[str]:
        return list(command)

    monkeypatch.setattr(confine, "launcher", as_it_is)


@pytest.fixture
def debugger() -> Iterator[Callable[[str], GdbProcess]]:
    """Return a function that attaches a GDB to a socket and lets the machine run to its end."""
    gdb.end_ahead()
    started: list[GdbProcess] = []

    def attach(place: str) -> GdbProcess:
        started.append(GdbProcess())
        one = started[-1]
        one.command("-gdb-set mi-async on")
        one.command("-gdb-set confirm off")
        one.command(f"-target-select remote {place}")
        one.resume()
        one.wait_stopped(10)
        return one

    yield attach
    for one in started:
        one.close()


def without_relay(
    tmp_path: Path, framed: Callable[[bytes], bytes], attach: Callable[[str], GdbProcess]
) -> list[bytes]:
    """Attach GDB to the stub itself, and return what it told the stub about files."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "stub"))
        listener.listen()
        stub = HostileStub(listener, tmp_path / "wanted", framed)
        # GDB may end by the limits, or say that the machine has
        with pytest.raises(InspectorError):
            attach(str(tmp_path / "stub"))
    return stub.replies


@pytest.mark.usefixtures("unconfined")
@pytest.mark.parametrize("framed", [plainly, hidden])
def test_the_stub_is_as_hostile_as_it_should_be(
    tmp_path: Path,
    framed: Callable[[bytes], bytes],
    debugger: Callable[[str], GdbProcess],
) -> None:
    """Without relay and limits, GDB does what the stub asks for."""
    without_relay(tmp_path, framed, debugger)
    assert (tmp_path / "wanted").read_bytes() == DATA


@pytest.mark.skipif(not landlock_version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("framed", [plainly, hidden])
def test_the_limits_alone_keep_files(
    tmp_path: Path,
    framed: Callable[[bytes], bytes],
    debugger: Callable[[str], GdbProcess],
) -> None:
    replies = without_relay(tmp_path, framed, debugger)
    assert replies[0].startswith(b"F-1"), "GDB was asked, and could not"
    assert not (tmp_path / "wanted").exists()


@pytest.mark.usefixtures("unconfined")
@pytest.mark.parametrize("framed", [plainly, hidden])
def test_the_relay_alone_keeps_files(
    tmp_path: Path,
    framed: Callable[[bytes], bytes],
    debugger: Callable[[str], GdbProcess],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stub = HostileStub(listener, tmp_path / "wanted", framed)
        relay = Connection("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(InspectorError):
            debugger(relay.socket_name)
        with pytest.raises(InspectorError, match=r"asked 'vCont;c.*' \(go on\)"):
            relay.about()
        relay.close()
        stub.ended()
    assert stub.replies == []
    assert not (tmp_path / "wanted").exists()


def test_gdb_starts_confined() -> None:
    process = GdbProcess()
    try:
        process.command("-gdb-show confirm")
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        process.close()
    assert limits.split("Max file size")[1].split()[0] == "0"
