"""The frames of GDB's remote serial protocol, decoded and encoded.

A packet is ``$content#checksum``.  Between packets there are acknowledgements
(``+``, ``-``) and, from GDB only, requests to stop (byte 3).  In the content,
``}`` announces a byte that was xored with 0x20, and ``*`` a count of
repetitions of the byte before it.

The relay decodes every packet and encodes it anew, so that no byte with a
special meaning reaches GDB as the stub wrote it.  GDB, for example, takes a
second ``$`` inside a packet for the beginning of another packet.
"""

from __future__ import annotations

import enum
import zlib

__all__ = ["CONTENT_LIMIT", "Decoder", "Malformed", "Sign", "checksum", "decoded", "encoded"]

CONTENT_LIMIT = 1 << 16
"""Bytes of one packet, before and after decoding; QEMU's packets have some 4 KiB."""
BETWEEN_LIMIT = 1 << 12
"""Bytes between two packets; there is one acknowledgement for each packet that was sent."""
START, END, ESCAPE, REPEAT = b"$", b"#", b"}", b"*"
ACKNOWLEDGED, NOTIFIES = ord("+"), ord("%")
FLIP = 0x20
COUNT_BASE = 29
"""The number that is added to a count of repetitions to make it a printable byte."""
COUNTS = range(ord(" "), ord("~") + 1)
CHECKED_AT_ONCE = 256
"""Bytes whose sum Adler-32 does not reduce: 256 * 255 is less than its modulus, 65521."""
SPECIAL = {byte: bytes((ESCAPE[0], byte ^ FLIP)) for byte in b"$#}*"}


class Malformed(ValueError):  # noqa: N818
    """Bytes that are not a frame; the message says what was expected and what came."""


class Sign(enum.Enum):
    """A byte between packets that has a meaning."""

    INTERRUPT = 3
    REPEAT = ord("-")
    """A request to send the last packet again."""


def checksum(content: bytes) -> int:
    """Return the sum of all bytes, modulo 256."""
    # The low half of an Adler-32 that begins at 0 is the sum of the bytes.  Python's ``sum`` takes
    # four times as long, which can be measured when memory is read.
    if len(content) <= CHECKED_AT_ONCE:
        return zlib.adler32(content, 0) & 0xFF
    view = memoryview(content)
    starts = range(0, len(view), CHECKED_AT_ONCE)
    return sum([zlib.adler32(view[at : at + CHECKED_AT_ONCE], 0) & 0xFF for at in starts]) & 0xFF


def encoded(content: bytes) -> bytes:
    """Return the packet that has this content."""
    if any(map(content.__contains__, SPECIAL)):
        content = b"".join(SPECIAL.get(byte, bytes((byte,))) for byte in content)
    return b"$%b#%02x" % (content, checksum(content))


def decoded(wire: bytes) -> bytes:
    """Return the content of a packet, from the bytes between its ``$`` and its ``#``.

    Raises:
        Malformed: an escape or a count is incomplete, or the content is
            longer than ``CONTENT_LIMIT``.
    """
    if ESCAPE not in wire and REPEAT not in wire:
        return wire
    content = bytearray()
    symbols = iter(wire)
    for byte in symbols:
        if byte == ESCAPE[0]:
            following = next(symbols, None)
            if following is None:
                raise Malformed("a packet ends inside an escape")
            content.append(following ^ FLIP)
        elif byte == REPEAT[0]:
            count = next(symbols, None)
            if count is None or count not in COUNTS or not content:
                raise Malformed("a packet repeats nothing, or without a count")
            content += content[-1:] * (count - COUNT_BASE)
        else:
            content.append(byte)
        if len(content) > CONTENT_LIMIT:
            raise Malformed(f"a packet has more than {CONTENT_LIMIT} bytes")
    return bytes(content)


class Decoder:
    """Takes bytes as they come, and gives packets and signs.

    Args:
        interrupts: whether requests to stop may come between packets, as they
            do from GDB.
    """

    def __init__(self, interrupts: bool) -> None:
        self._interrupts = interrupts
        self._buffer = bytearray()
        self._at = 0
        """Where in the buffer the bytes begin that were not given out yet."""
        self._between = 0
        """Bytes between packets that have come after the last packet."""

    def feed(self, data: bytes) -> None:
        """Take bytes that have come."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> bytes | Sign | None:
        """Return the content of the next whole packet or the next sign, None if there is none yet.

        Raises:
            Malformed: the bytes that have come are neither.
        """
        buffer = self._buffer
        while self._at < len(buffer):
            begins = buffer[self._at]
            if begins == START[0]:
                return self._packet()
            self._at += 1
            self._between += 1
            if self._between > BETWEEN_LIMIT:
                raise Malformed("acknowledgements without end")
            if begins == Sign.REPEAT.value:
                return Sign.REPEAT
            if begins == Sign.INTERRUPT.value and self._interrupts:
                return Sign.INTERRUPT
            if begins != ACKNOWLEDGED:
                what = "a notification" if begins == NOTIFIES else f"byte {begins:#04x}"
                raise Malformed(f"{what} where a packet was to begin")
        return None

    def _packet(self) -> bytes | None:
        begin = self._at + 1
        end = self._buffer.find(END, begin, begin + CONTENT_LIMIT + 1)
        if end < 0:
            if len(self._buffer) - begin > CONTENT_LIMIT:
                raise Malformed(f"a packet of more than {CONTENT_LIMIT} bytes")
            return None
        # the ``#`` is followed by two digits of checksum
        if len(self._buffer) < end + 3:
            return None
        wire = bytes(self._buffer[begin:end])
        if START in wire:
            raise Malformed("a packet begins inside a packet")
        given = self._buffer[end + 1 : end + 3]
        right = b"%02x" % checksum(wire)
        if given.lower() != right:
            raise Malformed(f"a packet has the checksum {right.decode()} and says {bytes(given)!r}")
        self._at = end + 3
        self._between = 0
        return decoded(wire)
