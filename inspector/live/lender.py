"""The process that lends a machine's memory over a socket, because its stub takes one client.

A request is a line of ASCII.  The answer is the line ``ok LENGTH``, ``error
LENGTH`` or ``lost LENGTH``, and that many bytes.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
import weakref
from collections.abc import Iterator, Sequence

from inspector.errors import TargetLost, TargetNotSupported, shown

__all__ = ["SIGNALS", "ConnectionLost", "Lender", "RequestRefused"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that are kept waiting where an exception would do harm."""
PIECE = 1 << 18
LINE_LIMIT = 64
SAID = 600
"""Characters of the other end's words that a message repeats."""

BATCH_BYTES = 1 << 23
ANSWER_LIMIT = 1 << 26
"""Bytes that an answer may announce; no batch of ranges has as many."""

PATIENCE = 60.0
"""Seconds in which a question is answered, counted from when it is asked."""
RATE = 1 << 15
"""Bytes of memory for which the deadline of a question is one second later."""

Span = tuple[int, int]


class RequestRefused(TargetNotSupported):
    """The request could not be carried out; ``said`` is the other end's reason."""

    def __init__(self, request: str, said: str) -> None:
        self.said = said
        super().__init__(f"'{request[:40]}' could not be done: {shown(said, SAID)}")


class ConnectionLost(TargetLost):
    """The other end answers nothing more; ``said`` is its last message."""

    def __init__(self, request: str, said: str) -> None:
        self.said = said
        super().__init__(f"'{request[:40]}' was not answered: {shown(said, SAID)}")


class Lender:
    """The process at the other end of a socket, which lends the machine.

    A question may be interrupted while its answer is waited for: the answer
    is then passed over before the next question.

    Args:
        end: the socket, which this object closes.
        batch: ranges in one request.
        patience: seconds in which the other end answers a question, beside
            the time that its bytes take.
    """

    def __init__(self, end: socket.socket, batch: int, patience: float = PATIENCE) -> None:
        self._end = end
        self._patience = patience
        # a user of ``open_served`` has nothing to close, so the socket is closed with this object
        weakref.finalize(self, end.close)
        self._batch = batch
        self._heard = bytearray()
        self._owed = 0
        """Answers that were not received to their end, 0 or 1."""
        self._torn = False
        """Whether a request may have been sent in part."""
        self._last_word = ""
        """Why nothing is answered any more."""

    def ask(self, request: str, length: int = 0) -> bytes:
        """Return the answer to a request.

        Args:
            request: what is asked.
            length: bytes of memory that are asked for.

        Raises:
            RequestRefused: it could not be done.
            ConnectionLost: the other end is gone, or does not answer in time.
        """
        if self._last_word:
            raise ConnectionLost(request, self._last_word)
        if self._torn:
            raise ConnectionLost(request, "an earlier request was interrupted")
        deadline = time.monotonic() + self._patience + length / RATE
        try:
            while self._owed:
                kind, answer = self._answer(deadline)
                if kind == b"lost":
                    raise self._lost(request, answer.decode("utf-8", "replace"))
            self._torn = True
            # the last message of the other end can be read even if it takes no more requests
            with contextlib.suppress(BrokenPipeError):
                self._end.sendall(request.encode() + b"\n")
            self._owed, self._torn = 1, False
            kind, answer = self._answer(deadline)
        except (OSError, ValueError) as error:
            raise self._lost(request, str(error)) from error
        if kind == b"ok":
            return answer
        said = answer.decode("utf-8", "replace")
        raise RequestRefused(request, said) if kind == b"error" else self._lost(request, said)

    def _lost(self, request: str, said: str) -> ConnectionLost:
        """Keep the reason why there is no answer, for the next request."""
        self._last_word = said
        return ConnectionLost(request, said)

    def _answer(self, deadline: float) -> tuple[bytes, bytes]:
        """Receive the next answer to its end; return its kind and its bytes."""
        while (end := self._heard.find(b"\n")) < 0:
            if len(self._heard) > LINE_LIMIT:
                raise ValueError(f"it says {bytes(self._heard[:LINE_LIMIT])!r}")
            self._listen(deadline)
        kind, _, announced = bytes(self._heard[:end]).partition(b" ")
        length = int(announced)
        if not 0 <= length <= ANSWER_LIMIT:
            raise ValueError(f"it announces {length} bytes")
        whole = end + 1 + length
        while len(self._heard) < whole:
            self._listen(deadline)
        answer = bytes(memoryview(self._heard)[end + 1 : whole])
        # an exception in between would leave an answer that is taken, but still owed
        with _uninterrupted():
            del self._heard[:whole]
            self._owed = 0
        return kind, answer

    def _listen(self, deadline: float) -> None:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([self._end], [], [], left)[0]:
            raise OSError("it did not answer in time")
        # bytes that are taken from the socket and not kept would shift all answers that follow
        with _uninterrupted():
            piece = self._end.recv(PIECE)
            self._heard += piece
        if not piece:
            raise OSError("the connection was closed")

    def tell(self, text: str) -> None:
        """Send a text that has no answer."""
        self._end.sendall(text.encode())

    def read_ranges(self, ranges: list[Span]) -> list[bytes]:
        """Return the bytes of ranges of RAM."""
        pieces = []
        for batch in _batches(ranges, self._batch):
            numbers = " ".join(f"{address:x} {length:x}" for address, length in batch)
            total = sum(length for _, length in batch)
            answer = self.ask(f"read {numbers}", total)
            if len(answer) != total:
                raise TargetNotSupported("the lender of the machine gave less than was asked for")
            begin = 0
            for _, length in batch:
                pieces.append(answer[begin : begin + length])
                begin += length
        return pieces

    def close(self) -> None:
        """Close the socket, which the other end notices."""
        self._end.close()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep signals waiting for the length of a block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batches(ranges: list[Span], count: int) -> Iterator[Sequence[Span]]:
    first = size = 0
    for index, (_, length) in enumerate(ranges):
        if index > first and (index - first == count or size + length > BATCH_BYTES):
            yield ranges[first:index]
            first, size = index, 0
        size += length
    if first < len(ranges):
        yield ranges[first:]
