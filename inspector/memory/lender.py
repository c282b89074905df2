"""Who is asked for a machine's memory over a socket, since only one can speak to its stub.

A request is a line of ASCII, and the answer the line ``ok LENGTH``, ``error
LENGTH`` or ``lost LENGTH`` and so many bytes.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence

from inspector.errors import TargetNotSupported

__all__ = ["Lender", "Lost", "Refused"]

BATCH_BYTES = 1 << 23
ANSWER_LIMIT = 1 << 26
"""Bytes; what is read at once is less."""

Span = tuple[int, int]


class Refused(TargetNotSupported):
    """What was asked could not be done; ``said`` is the other end's word for it."""

    def __init__(self, request: str, said: str) -> None:
        self.said = said
        super().__init__(f"'{request[:40]}' could not be done: {said}")


class Lost(TargetNotSupported):
    """The other end answers nothing more; ``said`` is its last word."""

    def __init__(self, request: str, said: str) -> None:
        self.said = said
        super().__init__(f"'{request[:40]}' was not answered: {said}")


class Lender:
    """The other end of a socket.

    Args:
        end: the socket, which is taken over.
        batch: ranges in one request.
    """

    def __init__(self, end: socket.socket, batch: int) -> None:
        with end:
            self._stream = end.makefile("rwb")
        self._batch = batch
        self._halfway = False

    def ask(self, request: str) -> bytes:
        """Return the answer to a request.

        Raises:
            Refused: it could not be done.
            Lost: the other end is gone, or an answer was not waited for.
        """
        if self._halfway:
            raise Lost(request, "an earlier answer was interrupted")
        self._halfway = True
        try:
            # what the other end said last can be read, also if it takes nothing more
            with contextlib.suppress(BrokenPipeError):
                self._stream.write(request.encode() + b"\n")
                self._stream.flush()
            kind, _, length = self._stream.readline().partition(b" ")
            if length and not 0 <= int(length) <= ANSWER_LIMIT:
                raise ValueError(f"it announces {int(length)} bytes")
            answer = self._stream.read(int(length)) if length else b""
        except (OSError, ValueError) as error:
            raise Lost(request, str(error)) from error
        if not length or len(answer) != int(length):
            raise Lost(request, "the connection was closed")
        self._halfway = False
        if kind == b"ok":
            return answer
        said = answer.decode("utf-8", "replace")
        raise Refused(request, said) if kind == b"error" else Lost(request, said)

    def tell(self, text: str) -> None:
        """Send what is not answered."""
        self._stream.write(text.encode())
        self._stream.flush()

    def read_ranges(self, ranges: list[Span]) -> list[bytes]:
        """Return the bytes of ranges of RAM."""
        pieces = []
        for batch in _batches(ranges, self._batch):
            numbers = " ".join(f"{address:x} {length:x}" for address, length in batch)
            answer = self.ask(f"read {numbers}")
            if len(answer) != sum(length for _, length in batch):
                raise TargetNotSupported("who lends the machine gave less than was asked")
            begin = 0
            for _, length in batch:
                pieces.append(answer[begin : begin + length])
                begin += length
        return pieces

    def close(self) -> None:
        """Close the socket, which the other end notices."""
        with contextlib.suppress(OSError):
            self._stream.close()


def _batches(ranges: list[Span], count: int) -> Iterator[Sequence[Span]]:
    first = size = 0
    for index, (_, length) in enumerate(ranges):
        if index > first and (index - first == count or size + length > BATCH_BYTES):
            yield ranges[first:index]
            first, size = index, 0
        size += length
    if first < len(ranges):
        yield ranges[first:]
