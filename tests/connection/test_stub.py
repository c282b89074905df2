"""How long a stub may take, how much it may send, and what else the relay watches meanwhile."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from inspector.live import stub as conversation
from inspector.live import terms
from inspector.live.description import ROOT
from inspector.live.framing import encoded
from inspector.live.stub import (
    Abandoned,
    Guard,
    Log,
    ProtocolBroken,
    Stub,
    StubLost,
    StubRefused,
    StubSilent,
    packet_of,
)

SOON = 0.3


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stub, socket.socket]]:
    """A stub that is asked with little patience, and the socket of the test that answers for it."""
    monkeypatch.setattr(terms, "SILENT", SOON)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Stub(ours, Guard(-1), Log()), theirs


@contextlib.contextmanager
def saying(end: socket.socket, pieces: Callable[[], bytes], pause: float) -> Iterator[None]:
    """Make an end send one piece after the other for the length of a block."""
    ended = threading.Event()

    def speak() -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(pause):
                end.send(pieces(), socket.MSG_DONTWAIT)

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_question_has_one_deadline_however_much_comes(
    ends: tuple[Stub, socket.socket],
) -> None:
    stub, theirs = ends
    theirs.sendall(b"$")
    began = time.monotonic()
    with (
        saying(theirs, lambda: b"0", SOON / 10),
        pytest.raises(StubSilent, match=r"asked 'g' \(registers\) and did not answer"),
    ):
        stub.ask(b"g")
    assert SOON <= time.monotonic() - began < 10 * SOON


def test_the_monitor_has_one_deadline_for_all_it_prints(ends: tuple[Stub, socket.socket]) -> None:
    stub, theirs = ends
    began = time.monotonic()
    with saying(theirs, lambda: b"+" + encoded(b"O41"), SOON / 10), pytest.raises(StubSilent):
        stub.monitor("info status")
    assert time.monotonic() - began < 10 * SOON


def test_what_the_monitor_prints_has_an_end(
    ends: tuple[Stub, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PRINTED_LIMIT", 1000)
    stub, theirs = ends
    theirs.sendall(encoded(b"O" + b"41" * 600) * 3)
    with pytest.raises(ProtocolBroken, match="printed over 1000 bytes"):
        stub.monitor("info status")


def test_text_of_the_monitor_holds_no_separator(ends: tuple[Stub, socket.socket]) -> None:
    stub, theirs = ends
    theirs.sendall(encoded(b"O410042") + encoded(b"OK"))
    assert stub.monitor("info status") == "A\N{REPLACEMENT CHARACTER}B"


@pytest.mark.slow
def test_a_stub_that_takes_nothing_is_given_up(ends: tuple[Stub, socket.socket]) -> None:
    stub, _ = ends
    began = time.monotonic()
    with pytest.raises(StubSilent):
        stub.send(*[b"mffffffffffff0000,800"] * 20_000)
    assert time.monotonic() - began < 10 * SOON


def test_stops_that_nobody_waits_for_are_passed_over_up_to_a_number(
    ends: tuple[Stub, socket.socket],
) -> None:
    stub, theirs = ends
    theirs.sendall(encoded(b"T02thread:p01.01;") * 3 + encoded(b"QC01"))
    assert stub.ask(b"qC") == b"QC01"
    theirs.sendall(encoded(b"T02thread:p01.01;") * 100)
    with pytest.raises(ProtocolBroken, match="asked 'qC'"):
        stub.ask(b"qC")


def test_what_was_not_asked_for_ends_the_conversation(ends: tuple[Stub, socket.socket]) -> None:
    stub, theirs = ends
    theirs.sendall(encoded(b"OK"))
    stub.fill(time.monotonic() + 1)
    with pytest.raises(ProtocolBroken, match="was asked nothing, and 'OK' came"):
        stub.arrived()


def test_what_came_is_shown_and_cut(ends: tuple[Stub, socket.socket]) -> None:
    stub, theirs = ends
    theirs.sendall(encoded(b"\x1b]0;title\x07" + b"A" * 5000))
    with pytest.raises(ProtocolBroken) as broken:
        stub.ask(b"qC")
    assert r"\x1b]0;title\x07AAA" in str(broken.value)
    assert str(broken.value).isprintable()
    assert len(str(broken.value)) < 300


def test_the_answers_that_are_under_way_are_for_their_own_questions(
    ends: tuple[Stub, socket.socket],
) -> None:
    stub, theirs = ends
    stub.send(b"m0,2", b"qC", b"m8,1")
    theirs.sendall(encoded(b"00ff") + encoded(b"QC01") + encoded(b"QC01"))
    assert stub.answer(stub.deadline()) == b"00ff"
    assert stub.answer(stub.deadline()) == b"QC01"
    with pytest.raises(ProtocolBroken, match="m8,1"):
        stub.answer(stub.deadline())


def test_no_question_without_a_form_is_sent(ends: tuple[Stub, socket.socket]) -> None:
    stub, theirs = ends
    with pytest.raises(StubRefused):
        stub.ask(b"M0,1:00")
    assert not select.select([theirs], [], [], 0)[0]


def test_whoever_waits_looks_after_the_owner() -> None:
    ours, theirs = socket.socketpair()
    owner, held = socket.socketpair()
    with ours, theirs, owner:
        stub = Stub(ours, Guard(owner.fileno()), Log())
        held.sendall(b"a request that nobody has read")
        threading.Timer(SOON, held.close).start()
        began = time.monotonic()
        with saying(theirs, lambda: b"+" * 10, SOON / 100), pytest.raises(Abandoned):
            stub.ask(b"qC")
        assert time.monotonic() - began < 10 * SOON


def test_leaving_has_one_deadline_for_all_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "LEAVE", SOON)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guard = Guard(-1)
        stub = Stub(ours, guard, Log())
        for place in range(20):
            theirs.sendall(encoded(b"OK"))
            stub.ask(b"Z1,%x,4" % place)
        guard.leave()
        began = time.monotonic()
        with saying(theirs, lambda: encoded(b"OK"), SOON / 10), pytest.raises(StubLost):
            stub.leave(keep_stopped=False)
        assert time.monotonic() - began < 10 * SOON


def test_the_description_is_that_of_qemu_or_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stub = Stub(ours, Guard(-1), Log())
        theirs.sendall(encoded(b""))
        assert stub.described() is None
        theirs.sendall(encoded(b"m<") + encoded(b"l<target>&x;</target>"))
        with pytest.raises(ProtocolBroken, match=f"{ROOT} has '&x;"):
            stub.described()


def test_packets_are_sent_after_an_acknowledgement() -> None:
    assert packet_of(b"g") == b"+$g#67"
