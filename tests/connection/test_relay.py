"""The relay as a process of its own, between a simulated stub and a simulated GDB."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inspector.errors import MemoryNotReadable, TargetNotSupported
from inspector.live import terms
from inspector.live.connection import Connection
from inspector.live.framing import Decoder, Sign, encoded
from inspector.live.lender import ConnectionLost, RequestRefused
from tests.profiles import thorough

CONTENTS = bytes(i * 7 % 251 for i in range(1 << 20))
HOLE = 0xBAD000


class Stub:
    """A stub that serves one client and keeps a list of the packets that it was sent."""

    def __init__(self, status: str = "VM status: paused\r\n", serving: bool = True) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.status = status
        self.packets: list[str] = []
        self.physical = self.attached = False
        self.stops_after = 0.0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if serving:
            self._thread.start()

    def serve_late(self) -> None:
        """Accept the client that has waited."""
        self._thread.start()

    def ended(self) -> list[str]:
        """Wait until the client is gone and return the packets it sent."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.packets

    def _serve(self) -> None:
        end, _ = self._listener.accept()
        decoder = Decoder(interrupts=True)
        while piece := _received(end):
            decoder.feed(piece)
            while (packet := decoder.next()) is not None:
                text = "\3" if isinstance(packet, Sign) else packet.decode()
                self.packets.append(text)
                if raw := self._raw(text):
                    with contextlib.suppress(OSError):
                        end.sendall(raw)
                    continue
                for answer in self._answers(text):
                    with contextlib.suppress(OSError):
                        end.sendall(b"+" + encoded(answer.encode()))
        end.close()

    def _raw(self, packet: str) -> bytes:
        """Return the bytes that are sent, as they are, in place of an answer."""
        return b""

    def _answers(self, packet: str) -> list[str]:
        if packet.startswith("qRcmd,"):
            command = bytes.fromhex(packet[6:]).decode()
            said = {"info status": self.status, "info replay": "Normal execution\r\n"}
            text = said.get(command, f"did {command}")
            return [*("O" + piece.encode().hex() for piece in (text[:4], text[4:])), "OK"]
        if packet.startswith("Qqemu.PhyMemMode:"):
            self.physical = packet.endswith("1")
            return ["OK"]
        if packet == "qqemu.PhyMemMode":
            return [str(int(self.physical))]
        if packet.startswith("m"):
            address, length = (int(word, 16) for word in packet[1:].split(","))
            assert self.physical
            return ["E14" if address >= HOLE else CONTENTS[address : address + length].hex()]
        if packet == "?":
            return ["T05thread:01;"]
        if packet == "g":
            return ["0123456789abcdef"]
        if packet == "\3":
            time.sleep(self.stops_after)
            return ["T02thread:01;"]
        return [] if packet.startswith("vCont;c") else ["OK"]


def _received(end: socket.socket) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return end.recv(1 << 18)
    return b""


class Gdb:
    """GDB's end: it sends packets and takes the answers."""

    def __init__(self, name: str) -> None:
        self._end = socket.socket(socket.AF_UNIX)
        self._end.connect(name)
        self._decoder = Decoder(interrupts=False)

    def send(self, packet: bytes) -> None:
        """Send a packet."""
        self._end.sendall(b"+" + encoded(packet))

    def ask(self, packet: bytes) -> bytes:
        """Send a packet and return the answer."""
        self.send(packet)
        return self.answer()

    def answer(self) -> bytes:
        """Return the next answer."""
        while (packet := self._decoder.next()) is None:
            piece = self._end.recv(1 << 18)
            assert piece, "the relay has closed the connection"
            self._decoder.feed(piece)
        assert isinstance(packet, bytes)
        return packet

    def rest(self) -> bytes:
        """Return all bytes that come until the relay closes the connection."""
        heard = b""
        while piece := self._end.recv(1 << 18):
            heard += piece
        return heard

    def let_run(self) -> None:
        """Ask why the machine is stopped, and let it run."""
        self.ask(b"?")
        self.send(b"vCont;c:p1.-1")

    def interrupt(self) -> None:
        """Ask the machine to stop."""
        self._end.sendall(b"\3")

    def end(self) -> None:
        """Close the connection."""
        self._end.close()


Begun = tuple[Connection, Gdb]


@pytest.fixture
def begin() -> Iterator[Callable[[Stub], Begun]]:
    begun: list[Begun] = []

    def start(stub: Stub) -> Begun:
        started = Connection("127.0.0.1", stub.port)
        begun.append((started, Gdb(started.socket_name)))
        return begun[-1]

    yield start
    for each, gdb in begun:
        gdb.end()
        each.close()


@pytest.mark.slow
def test_memory_is_read_in_order_many_packets_at_once(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, _ = begin(stub)
    ranges = [(i * 5000 % 900_000, 1 + i * 37 % 6000) for i in range(300)]
    assert asked.read_ranges(ranges) == [CONTENTS[a : a + n] for a, n in ranges]
    assert asked.read_ranges([]) == []
    assert asked.about() == ("VM status: paused", "Normal execution\r\n")
    assert not stub.physical
    with pytest.raises(MemoryNotReadable, match="0xbad000: the stub answered E14"):
        asked.read_ranges([(16, 4000), (HOLE, 3000), (8, 8)])
    assert not stub.physical
    assert asked.read_ranges([(16, 3)]) == [CONTENTS[16:19]]
    assert max(len(packet) for packet in stub.packets) < 80


def test_what_writes_does_not_reach_the_stub(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    assert gdb.ask(b"?") == b"T05thread:01;"
    for packet in (b"M0,1:00", b"X0,1:\0", b"G00", b"P1=00", b"Z0,c0,4"):
        assert gdb.ask(packet) == b"E01"
    for packet in (
        b"k",
        b"vKill;1",
        b"vFlashErase:0,1",
        b"qRcmd,71756974",
        b"QNonStop:1",
        b"R00",
        b"c10",
    ):
        assert gdb.ask(packet) == b""
    assert gdb.ask(b"qXfer:memory-map:write:0:00") == b""
    assert gdb.ask(b"Qqemu.PhyMemMode:1") == b""
    assert gdb.ask(b"g") == b"0123456789abcdef"
    for text in ("quit", "info status; quit", "gpa2hva 0x0; quit", "pmemsave 0 1 /tmp/x"):
        with pytest.raises(RequestRefused):
            asked.monitor(text)
    assert asked.monitor("gpa2hva 0x10") == "did gpa2hva 0x10"
    with pytest.raises(RequestRefused, match="none of what may be asked"):
        asked.packet("M0,1:00")
    asked.close()
    sent = stub.ended()
    assert not [packet for packet in sent if packet[:1] in "MXGPkvR" or "Z0" in packet]


SMUGGLED = (
    b"$Fopen,1000/9,201,1b6#%02x" % (sum(b"Fopen,1000/9,201,1b6") & 0xFF),
    # GDB takes the second "$" for the beginning of a packet
    b"$Y_$$Funlink,1000/9#%02x" % (sum(b"Funlink,1000/9") & 0xFF),
    b"$Y_$$Funlink,1000/9#%02x" % (sum(b"Y_$$Funlink,1000/9") & 0xFF),
    b"%Stop:T05thread:01;#00",
    b"$T05thread:01;exec:2f62696e2f7368;#00",
    b"\3",
    b"x" * 100,
    b"-",
    b"$" + b"0" * (1 << 18),
)


@pytest.mark.slow
@pytest.mark.parametrize("smuggled", SMUGGLED, ids=lambda raw: repr(raw[:24]))
@pytest.mark.parametrize("moment", ["?", "g", "vCont;c:p1.-1"])
def test_no_stub_reaches_files_of_this_host(smuggled: bytes, moment: str) -> None:
    """GDB opens and removes files for a stub that asks while the machine runs, or in an answer."""

    class Asking(Stub):
        def _raw(self, packet: str) -> bytes:
            return smuggled if packet == moment else b""

    stub = Asking()
    asked = Connection("127.0.0.1", stub.port)
    gdb = Gdb(asked.socket_name)
    questions = [b"?", b"g", b"vCont;c:p1.-1"]
    heard = b""
    for question in questions[: questions.index(moment.encode()) + 1]:
        gdb.send(question)
        if question == moment.encode():
            heard = gdb.rest()
        else:
            gdb.answer()
    assert heard.strip(b"+") == b""
    with pytest.raises(TargetNotSupported, match="the stub was asked") as lost:
        asked.read_ranges([(0, 8)])
    assert str(lost.value).isprintable()
    assert len(str(lost.value)) < 700
    asked.close()


def test_the_machine_goes_on_when_the_inspector_goes(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.ask(b"?")
    asked.packet("Z2,c000,8")
    assert gdb.ask(b"Z1,c0,4") == b"OK"
    assert asked.close()
    assert sorted(stub.ended()[-3:]) == ["D", "z1,c0,4", "z2,c000,8"]


def test_the_machine_goes_on_when_gdb_goes(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.ask(b"?")
    gdb.end()
    assert stub.ended()[-1] == "D"
    with pytest.raises(ConnectionLost, match="GDB has ended"):
        asked.read_ranges([(0, 8)])


def test_a_running_machine_is_not_stopped_to_leave_it(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.let_run()
    with pytest.raises(RequestRefused, match="runs"):
        asked.read_ranges([(0, 8)])
    gdb.interrupt()
    assert gdb.answer() == b"T02thread:01;"
    assert asked.read_ranges([(0, 8)]) == [CONTENTS[:8]]
    gdb.send(b"vCont;c:p1.-1")
    with pytest.raises(RequestRefused, match="runs"):
        asked.monitor("info status")
    assert asked.close()
    assert stub.ended()[-1] == "vCont;c:p1.-1"


def test_a_machine_is_held_without_gdb(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.let_run()
    for _ in range(3):
        asked.hold()
        asked.hold()
        assert asked.read_ranges([(5, 8)]) == [CONTENTS[5:13]]
        asked.go()
        with pytest.raises(RequestRefused, match="runs"):
            asked.read_ranges([(0, 8)])
    gdb.interrupt()
    assert gdb.answer() == b"T02thread:01;", "GDB hears of its own stop only"
    assert gdb.ask(b"g") == b"0123456789abcdef"
    assert asked.close()
    assert stub.ended().count("\3") == 4


def test_a_machine_that_was_held_goes_on(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.let_run()
    asked.hold()
    assert asked.close()
    assert stub.ended()[-1] == "D"


def test_a_machine_with_breakpoints_is_not_held(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.ask(b"Z1,c0,4")
    gdb.send(b"vCont;c:p1.-1")
    with pytest.raises(RequestRefused, match="breakpoints"):
        asked.hold()
    assert "\3" not in stub.packets


def test_a_machine_that_ends_cannot_be_held(begin: Callable[[Stub], Begun]) -> None:
    class Ending(Stub):
        def _answers(self, packet: str) -> list[str]:
            return ["W00"] if packet == "\3" else super()._answers(packet)

    stub = Ending()
    asked, gdb = begin(stub)
    gdb.let_run()
    with pytest.raises(ConnectionLost, match="QEMU has ended"):
        asked.hold()


def test_breakpoints_are_taken_out_of_a_running_machine(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    asked, gdb = begin(stub)
    gdb.ask(b"Z1,c0,4")
    gdb.send(b"vCont;c:p1.-1")
    with pytest.raises(RequestRefused, match="runs"):
        asked.packet("?")
    assert asked.close()
    assert stub.ended()[-3:] == ["\3", "z1,c0,4", "D"]


@pytest.mark.parametrize("known", [True, False])
def test_what_stood_still_stands_still(known: bool) -> None:
    stub = Stub("VM status: paused\r\n" if known else "VM status: paused (prelaunch)\r\n")
    asked = Connection("127.0.0.1", stub.port)
    if known:
        asked.keep_stopped()
    gdb = Gdb(asked.socket_name)
    assert gdb.ask(b"?") == b"T05thread:01;"
    assert asked.read_ranges([(0, 8)]) == [CONTENTS[:8]]
    assert asked.close()
    assert "D" not in stub.ended()
    assert stub.packets[-1] == "Qqemu.PhyMemMode:0"


def test_gdb_does_not_let_go_on_what_stood_still() -> None:
    stub = Stub()
    asked = Connection("127.0.0.1", stub.port)
    asked.keep_stopped()
    gdb = Gdb(asked.socket_name)
    assert gdb.ask(b"?") == b"T05thread:01;"
    gdb.send(b"D;1")
    assert not [packet for packet in stub.ended() if packet.startswith("D")]
    asked.close()


@pytest.mark.slow
def test_a_stop_that_is_under_way_is_waited_for(begin: Callable[[Stub], Begun]) -> None:
    stub = Stub()
    stub.stops_after = 0.5
    asked, gdb = begin(stub)
    gdb.let_run()
    gdb.interrupt()
    while "\3" not in stub.packets:
        time.sleep(0.01)
    assert asked.close()
    assert stub.ended()[-2:] == ["\3", "D"]


def test_a_machine_is_let_go_on_however_it_was_found() -> None:
    stub = Stub("VM status: paused (prelaunch)\r\n")
    stub.physical = True
    asked = Connection("127.0.0.1", stub.port, resume=True)
    assert asked.about()[0] == "VM status: paused (prelaunch)"
    assert asked.close()
    assert stub.ended()[-1] == "D"
    assert not stub.physical


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    asked = Connection("127.0.0.1", port, resume=True)
    with pytest.raises(ConnectionLost, match="unreached Connection refused"):
        asked.about()
    assert asked.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make relays give up soon."""
    monkeypatch.setattr("inspector.live.connection.MODULE", "tests.connection.impatient")


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_is_served_late_leaves_standing_what_stood_still() -> None:
    stub = Stub(serving=False)
    asked = Connection("127.0.0.1", stub.port)
    asked.keep_stopped()
    Gdb(asked.socket_name)
    with pytest.raises(ConnectionLost, match="silence"):
        asked.about()
    assert asked.close()
    stub.serve_late()
    assert not [packet for packet in stub.ended() if packet.startswith("D")]


@pytest.mark.usefixtures("impatient")
def test_a_connection_that_is_served_late_lets_the_machine_go_on() -> None:
    stub = Stub(serving=False)
    asked = Connection("127.0.0.1", stub.port, resume=True)
    with pytest.raises(ConnectionLost, match="silence"):
        asked.about()
    assert asked.close()
    stub.serve_late()
    assert stub.ended()[-2:] == ["qSupported:multiprocess+", "D;1"]


def test_packets_are_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "packets"
    monkeypatch.setenv(terms.LOG, str(log))
    stub = Stub()
    asked = Connection("127.0.0.1", stub.port)
    gdb = Gdb(asked.socket_name)
    assert gdb.ask(b"M0,1:00") == b"E01"
    asked.read_ranges([(0, 4096)])
    asked.close()
    stub.ended()
    lines = [line.split(" ", 2)[1:] for line in log.read_text().splitlines()]
    assert ["!", "M0,1:00"] in lines
    assert [text for sign, text in lines if sign == ">"] == stub.packets
    assert max(len(text) for _, text in lines) <= 96
    assert (log.stat().st_mode & 0o777) == 0o600


def test_nothing_is_left_of_the_socket() -> None:
    stub = Stub()
    asked = Connection("127.0.0.1", stub.port)
    folder = Path(asked.socket_name).parent
    assert (folder.stat().st_mode & 0o777) == 0o700
    asked.close()
    assert not folder.exists()


ENDS_WITHIN = 10.0


class Flooding(Stub):
    """Sends the bytes that it was given, without end, from a given moment on."""

    def __init__(self, flood: bytes, moment: str) -> None:
        self._flood, self._moment = flood, moment
        super().__init__()

    def _raw(self, packet: str) -> bytes:
        return (
            self._flood * (1 << 24 >> len(self._flood).bit_length())
            if (packet == self._moment)
            else b""
        )


FLOODS = [b"+", b"$O41#b4", b"$T05thread:01;#07", b"$" + b"0" * 5000]
MOMENTS = ["qRcmd,696e666f20737461747573", "?", "vCont;c:p1.-1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flood", "moment", "number"),
    [
        (flood, moment, number)
        for (at, flood), (then, moment) in itertools.product(enumerate(FLOODS), enumerate(MOMENTS))
        for number in (None, signal.SIGTERM)
        # each way to end it with each flood and at each moment: half of them in the short profile
        if thorough() or (number is None) == ((at + then) % 2 == 0)
    ],
    ids=itertools.count(),
)
def test_no_flood_keeps_a_relay(flood: bytes, moment: str, number: int | None) -> None:
    """However much the stub sends, the relay ends when its owner goes away or it is told to."""
    stub = Flooding(flood, moment)
    asked = Connection("127.0.0.1", stub.port)
    process = asked._process
    gdb = Gdb(asked.socket_name)
    with contextlib.suppress(OSError):
        gdb.send(b"?")
        gdb.send(b"vCont;c:p1.-1")
    time.sleep(0.3)
    began = time.monotonic()
    if number is None:
        asked._lender.close()
    else:
        process.send_signal(number)
    process.wait(ENDS_WITHIN)
    assert time.monotonic() - began < ENDS_WITHIN
    asked.close()


@pytest.mark.slow
@pytest.mark.parametrize("connected", [True, False])
def test_a_relay_ends_when_it_is_told_to(connected: bool) -> None:
    stub = Stub()
    asked = Connection("127.0.0.1", stub.port)
    gdb = Gdb(asked.socket_name) if connected else None
    if gdb is not None:
        gdb.ask(b"?")
    else:
        # the relay must run before a signal can end it
        time.sleep(0.5)
    asked._process.terminate()
    assert asked._process.wait(ENDS_WITHIN) in (terms.LEFT, -signal.SIGTERM)
    if connected:
        assert stub.ended()[-1] == "D"
    asked.close()


@pytest.mark.slow
def test_a_relay_ends_with_its_owner_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub owes an answer, and the machine still loses its breakpoints and runs."""

    class Slow(Stub):
        def _answers(self, packet: str) -> list[str]:
            if packet == "qC":
                time.sleep(1)
                return ["QC01"]
            return super()._answers(packet)

    stub = Slow()
    asked = Connection("127.0.0.1", stub.port)
    gdb = Gdb(asked.socket_name)
    gdb.ask(b"Z1,c0,4")
    gdb.send(b"qC")
    time.sleep(0.2)
    asked._lender.close()
    assert asked._process.wait(ENDS_WITHIN) == terms.LEFT
    assert stub.ended()[-3:] == ["qC", "z1,c0,4", "D"]
    asked.close()


def test_gdb_is_given_one_description_and_three_abilities(
    begin: Callable[[Stub], Begun],
) -> None:
    target = (
        '<target><architecture>powerpc:common64</architecture><xi:include href="a.xml"/></target>'
    )
    files = {"target.xml": target, "a.xml": '<feature name="f"><reg name="r" bitsize="64"/>'}
    files["a.xml"] += "<!-- }$#* --></feature>"

    class Described(Stub):
        def _answers(self, packet: str) -> list[str]:
            if packet.startswith("qXfer:features:read:"):
                name, _, place = packet.split(":", 3)[3].partition(":")
                begin, length = (int(word, 16) for word in place.split(","))
                text = files[name]
                sign = "l" if begin + length >= len(text) else "m"
                return [sign + text[begin : begin + length]]
            if packet.startswith("qSupported"):
                return ["PacketSize=1000;qXfer:features:read+;qXfer:exec-file:read+;vFile+"]
            return ["00" * 8] if packet.startswith("p") else super()._answers(packet)

    stub = Described()
    _, gdb = begin(stub)
    assert gdb.ask(b"qSupported:xmlRegisters=i386;exec-events+") == (
        b"PacketSize=1000;qXfer:features:read+"
    )
    text = gdb.ask(b"qXfer:features:read:target.xml:0,ffb")
    assert text.startswith(b"l<?xml")
    assert b'<feature name="f"><reg name="r" bitsize="64"/></feature></target>' in text
    assert gdb.ask(b"qXfer:features:read:target.xml:5,3") == b"m" + text[6:9]
    assert gdb.ask(b"qXfer:features:read:a.xml:0,ffb") == b"E00"
    assert gdb.ask(b"p0") == b"00" * 8
    for question in (b"qXfer:exec-file:read:1:0,ffb", b"vFile:setfs:0", b"qSymbol::", b"qOffsets"):
        assert gdb.ask(question) == b""
    assert not [packet for packet in stub.packets if packet.startswith(("vFile", "qSymbol"))]
    assert stub.packets.count("qSupported:multiprocess+") == 1


def test_a_register_has_its_size(begin: Callable[[Stub], Begun]) -> None:
    class Short(Stub):
        def _answers(self, packet: str) -> list[str]:
            if packet.startswith("qXfer:features:read:"):
                return [
                    "l<target><architecture>powerpc:common64</architecture>"
                    '<feature name="f"><reg name="r" bitsize="64"/></feature></target>'
                ][: 1 if packet.endswith(",800") else 0] or ["m<"]
            return ["00" * 4] if packet == "p0" else super()._answers(packet)

    stub = Short()
    asked, gdb = begin(stub)
    gdb.ask(b"qXfer:features:read:target.xml:0,ffb")
    gdb.send(b"p0")
    gdb.rest()
    with pytest.raises(TargetNotSupported, match="a register of 8 bytes"):
        asked.about()


def test_another_architecture_is_told(begin: Callable[[Stub], Begun]) -> None:
    class Arm(Stub):
        def _answers(self, packet: str) -> list[str]:
            if packet.startswith("qXfer:features:read:"):
                short = packet.endswith(",1")
                return ["m<" if short else "l<target><architecture>aarch64</architecture>"]
            return super()._answers(packet)

    asked, gdb = begin(Arm())
    gdb.send(b"qXfer:features:read:target.xml:0,ffb")
    gdb.rest()
    with pytest.raises(ConnectionLost, match="other aarch64"):
        asked.about()
