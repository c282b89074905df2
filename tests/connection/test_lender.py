"""Questions that are interrupted, and the answers to the next ones."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from inspector.live.lender import ConnectionLost, Lender, RequestRefused

LONG = 1 << 20


@pytest.fixture
def lender() -> Iterator[Lender]:
    """Return a lender whose other end repeats each question many times, in pieces."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as questions:
            for line in questions:
                answer = line.strip() * (LONG // len(line))
                said = b"ok %d\n" % len(answer) + answer
                for begin in range(0, len(said), LONG // 4):
                    theirs.sendall(said[begin : begin + LONG // 4])
                    time.sleep(0.002)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    asked = Lender(ours, 16)
    yield asked
    asked.close()
    thread.join(5)


@pytest.mark.parametrize("at", range(6))
def test_an_answer_that_was_not_waited_for_is_passed_over(
    at: int, lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = iter(range(1 << 20))
    wait = select.select

    def interrupted(*given: Any) -> Any:
        if next(waits) == at:
            raise KeyboardInterrupt
        return wait(*given)

    def ask_on() -> None:
        while True:
            lender.ask("second")

    assert set(lender.ask("first")) == set(b"first")
    monkeypatch.setattr(select, "select", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask_on()
    for question in ("third", "fourth"):
        answer = lender.ask(question)
        assert answer == question.encode() * (len(answer) // len(question))
        assert len(answer) > LONG // 2


def _said(data: bytes) -> Lender:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
    return Lender(ours, 16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the connection was closed"),
        (b"ok 5\n1234", "the connection was closed"),
        (b"ok 99999999999\n", "announces 99999999999 bytes"),
        (b"ok -1\n", "announces -1 bytes"),
        (b"ok five\n", "invalid literal"),
        (b"x" * 4096, "it says b'xxx"),
        (b"lost 4\ngone", "gone"),
    ],
)
def test_what_is_no_answer(data: bytes, reason: str) -> None:
    with pytest.raises(ConnectionLost, match=reason):
        _said(data).ask("anything")


def test_the_last_word_is_heard_instead_of_an_answer_that_is_owed() -> None:
    lender = _said(b"lost 4\ngone")
    lender._owed = 1
    with pytest.raises(ConnectionLost, match="gone"):
        lender.ask("anything")


def test_a_refusal() -> None:
    with pytest.raises(RequestRefused, match="'anything' could not be done: no"):
        _said(b"error 2\nno").ask("anything")
