"""Files packed with xz, gzip or zstd, unpacked piece by piece, up to a limit.

A few KB can unpack to more bytes than any machine has.  So the sizes that a
file announces are not trusted, and no file gets more memory than the limits
allow.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from inspector.errors import BadData

__all__ = ["AGAIN", "STEP", "UNPACKED_LIMIT", "copied_again", "is_packed", "pieces", "unpack"]

AGAIN = "copy it again, or take another dump"
"""What to do with a file that is not whole."""

UNPACKED_LIMIT = 1 << 32
"""Bytes that a file may unpack to; a file that exceeds this is taken for a bomb."""

STEP = 1 << 12
"""Bytes that are unpacked at once: a bomb is seen before it takes much more than the limit."""
IN_VAIN = 1 << 24
"""Bytes in a row that may unpack to nothing; a hole of terabytes would otherwise be read."""
DICTIONARY_LIMIT = 1 << 28
"""Bytes that an xz stream may ask for; the strongest preset of xz takes a quarter of that."""
GZIP_WINDOW = 31
"""zlib's ``wbits`` for a gzip header (16) and the largest window (15)."""


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Packing(NamedTuple):
    """A function that begins a stream, and the exception that a damaged stream raises."""

    begin: Callable[[], _Stream]
    damage: type[Exception]


def _xz() -> _Packing:
    return _Packing(
        lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DICTIONARY_LIMIT), lzma.LZMAError
    )


def _gzip() -> _Packing:
    return _Packing(lambda: zlib.decompressobj(GZIP_WINDOW), zlib.error)


def _zstd() -> _Packing:
    import zstandard

    return _Packing(lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)


_PACKINGS: dict[bytes, Callable[[], _Packing]] = {
    b"\xfd7zXZ\0": _xz,
    b"\x1f\x8b": _gzip,
    b"\x28\xb5\x2f\xfd": _zstd,
}


def is_packed(data: bytes) -> bool:
    """Say whether a file with this beginning is packed in a known way."""
    return data.startswith(tuple(_PACKINGS))


def copied_again(cut: str) -> str:
    """Return what to do about a file that is cut off as ``cut`` says; nothing if it is empty."""
    return f"{cut}; {AGAIN}" if cut else ""


def pieces(data: bytes) -> Iterator[bytes]:
    """Yield the data in the pieces that ``unpack`` takes."""
    for begin in range(0, len(data), STEP):
        yield data[begin : begin + STEP]


def unpack(path: Path, packed: Iterable[bytes]) -> bytes:
    """Return the unpacked contents of a packed file; streams may follow each other.

    Args:
        path: the file, for messages.
        packed: its contents, in pieces of ``STEP`` bytes; the first says how they are packed.

    Raises:
        BadData: they are damaged or truncated, or unpack to more than the limit.
    """
    out = io.BytesIO()
    stream: _Stream | None = None
    packing: _Packing | None = None
    in_vain = 0
    for piece in packed:
        if packing is None or stream is None:
            packing = next(of for magic, of in _PACKINGS.items() if piece.startswith(magic))()
            stream = packing.begin()
        before = out.tell()
        in_vain += len(piece)
        try:
            while piece:
                if stream.eof:
                    stream = packing.begin()
                out.write(stream.decompress(piece))
                # zeros may follow a stream
                piece = stream.unused_data.lstrip(b"\0") if stream.eof else b""
                if out.tell() > UNPACKED_LIMIT:
                    raise BadData(f"{path} unpacks to more than {UNPACKED_LIMIT >> 30} GiB")
        except (packing.damage, EOFError) as error:
            raise BadData(f"{path} is damaged: {error}; {AGAIN}") from error
        if out.tell() > before:
            in_vain = 0
        elif in_vain > IN_VAIN:
            raise BadData(
                f"{path} is damaged: {in_vain >> 20} MiB of it unpack to nothing; {AGAIN}"
            )
    if stream is None or not stream.eof:
        raise BadData(f"{path} is truncated: it ends inside its packed data; {AGAIN}")
    return out.getvalue()
