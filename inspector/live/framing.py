"""The frames of GDB's remote serial protocol, decoded and encoded.

A packet is ``$content#checksum``.  Between packets stand acknowledgements
(``+``, ``-``) and, from GDB only, requests to stop (byte 3).  In the content
``}`` announces a byte that was xored with 0x20, and ``*`` a count of
repetitions of the byte before it.

Whoever passes packets on decodes them and encodes them anew: a byte that has
a meaning of its own for the reader then never gets there as the sender wrote
it.  GDB takes a second ``$`` inside a packet for the beginning of another.
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
"""What is added to a count of repetitions so that it can be printed."""
COUNTS = range(ord(" "), ord("~") + 1)
CHECKED_AT_ONCE = 256
"""Bytes whose sum Adler-32 keeps whole: 256 * 255 is less than its modulus."""
SPECIAL = {byte: bytes((ESCAPE[0], byte ^ FLIP)) for byte in b"$#}*"}


class Malformed(ValueError):  # noqa: N818
    """Bytes that are no frame; the message says what was expected and what came."""


class Sign(enum.Enum):
    """What stands between packets and means something."""

    INTERRUPT = 3
    REPEAT = ord("-")
    """A request to send the last packet again."""


def checksum(content: bytes) -> int:
    """Return the sum of all bytes, modulo 256."""
    # Adler-32 that begins at 0 has the sum in its low half; Python's own ``sum`` takes four times
    # as long, which shows where memory is read
    if len(content) <= CHECKED_AT_ONCE:
        return zlib.adler32(content, 0) & 0xFF
    view = memoryview(content)
    starts = range(0, len(view), CHECKED_AT_ONCE)
    return sum([zlib.adler32(view[at : at + CHECKED_AT_ONCE], 0) & 0xFF for at in starts]) & 0xFF


def encoded(content: bytes) -> bytes:
    """Return the packet that carries a content."""
    if any(map(content.__contains__, SPECIAL)):
        content = b"".join(SPECIAL.get(byte, bytes((byte,))) for byte in content)
    return b"$%b#%02x" % (content, checksum(content))


def decoded(wire: bytes) -> bytes:
    """Return the content that stands between ``$`` and ``#``.

    Raises:
        Malformed: an escape or a count is not whole, or the content is longer
            than ``CONTENT_LIMIT``.
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
        interrupts: whether requests to stop may stand between packets, as
            they do in what GDB sends.
    """

    def __init__(self, interrupts: bool) -> None:
        self._interrupts = interrupts
        self._buffer = bytearray()
        self._at = 0
        """Where in the buffer that begins which was not given yet."""
        self._between = 0
        """Bytes that stood between packets since the last one."""

    def feed(self, data: bytes) -> None:
        """Take bytes that have come."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> bytes | Sign | None:
        """Return the content of the next whole packet or the next sign, None if there is none yet.

        Raises:
            Malformed: what has come is no packet.
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
