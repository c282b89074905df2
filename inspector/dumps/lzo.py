"""Decompress LZO1X, as makedumpfile -l and QEMU's kdump-lzo write it.

The stream is described in Documentation/staging/lzo.rst of the kernel.  The
decoder is written in Python because no wheel of liblzo exists; a page is small.
"""

from __future__ import annotations

__all__ = ["LzoError", "decompress"]


class LzoError(ValueError):
    """The data are not one LZO1X stream, or expand to more bytes than allowed."""


def decompress(data: bytes, limit: int) -> bytes:
    """Return the data that a stream expands to, ``limit`` bytes at most.

    Raises:
        LzoError: the stream is damaged, truncated, or expands to more.
    """
    try:
        out, used = _expand(data, limit)
    except IndexError:
        raise LzoError("it ends too early") from None
    if len(out) > limit:
        raise LzoError(f"it expands to more than {limit} bytes")
    if used != len(data):
        raise LzoError(f"{len(data) - used} bytes follow its end")
    return bytes(out)


def _expand(data: bytes, limit: int) -> tuple[bytearray, int]:
    out = bytearray()
    at = 0
    literals = 0
    """How many literals the last instruction copied: 0, 1 to 3, or 4 for a run."""
    # Only the first byte can be a count of literals, plus 17.  The branches below are the
    # instructions of lzo.rst; two bits of a match say how many literals follow it.
    if data[0] > 17:
        literals = data[0] - 17
        at = 1 + literals
        out += _literals(data, 1, literals)
        literals = min(literals, 4)
    while True:
        code = data[at]
        at += 1
        if code >= 64:
            length = (code >> 5) + 1
            distance = (data[at] << 3) + ((code >> 2) & 7) + 1
            at += 1
            literals = code & 3
        elif code >= 16:
            length, at = _long(data, at, code, 31 if code >= 32 else 7)
            low = data[at]
            distance = (data[at + 1] << 6) + (low >> 2)
            at += 2
            literals = low & 3
            if code < 32:
                distance += (code & 8) << 11
                if distance == 0:
                    return out, at
                distance += 0x4000
            else:
                distance += 1
        elif literals == 0:
            length, at = _long(data, at, code, 15)
            length += 1
            out += _literals(data, at, length)
            at += length
            literals = 4
            continue
        else:
            distance = (data[at] << 2) + (code >> 2) + (2049 if literals == 4 else 1)
            length = 3 if literals == 4 else 2
            at += 1
            literals = code & 3
        begin = len(out) - distance
        if begin < 0:
            raise LzoError("a match begins before the data")
        if len(out) + length + literals > limit:
            raise LzoError(f"it expands to more than {limit} bytes")
        # a match that is longer than its distance repeats the bytes that it writes itself
        if length <= distance:
            out += out[begin : begin + length]
        else:
            pattern = out[begin:]
            out += (pattern * (length // distance + 1))[:length]
        if literals:
            out += _literals(data, at, literals)
            at += literals


def _literals(data: bytes, at: int, length: int) -> bytes:
    piece = data[at : at + length]
    if len(piece) != length:
        raise LzoError("it ends too early")
    return piece


def _long(data: bytes, at: int, code: int, mask: int) -> tuple[int, int]:
    """Return a length that may continue in further bytes, and the position after it."""
    length = code & mask
    if length == 0:
        length = mask
        while data[at] == 0:
            length += 255
            at += 1
        length += data[at]
        at += 1
    return length + 2, at
