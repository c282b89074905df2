"""The compressions that a page of a kdump-compressed dump can have."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable

from inspector.dumps import lzo
from inspector.errors import TargetNotSupported

__all__ = ["NAMES", "PageDamaged", "expand", "require"]

ZLIB, LZO, SNAPPY, ZSTD = 0x1, 0x2, 0x4, 0x20
NAMES = {ZLIB: "zlib", LZO: "lzo", SNAPPY: "snappy", ZSTD: "zstd"}


class PageDamaged(ValueError):  # noqa: N818
    """The data do not expand to one page."""


def require(flags: int) -> None:
    """Refuse a dump whose compression cannot be undone here, before any page of it is read.

    Raises:
        TargetNotSupported: an optional package is needed.
    """
    if flags & SNAPPY and importlib.util.find_spec("cramjam") is None:
        raise TargetNotSupported(
            "the dump is compressed with snappy; install the reader for it with "
            "pip install 'kvmhv-inspector[kdump]'"
        )


def expand(data: bytes, flags: int, size: int) -> bytes:
    """Return the page of ``size`` bytes that was stored with these flags.

    Raises:
        PageDamaged: the data are not such a page.
        TargetNotSupported: an optional package is needed.
    """
    kind = flags & sum(NAMES)
    if kind == 0:
        page = data
    elif kind in _EXPANDERS:
        page = _EXPANDERS[kind](data, size)
    else:
        raise PageDamaged(f"its flags {flags:#x} do not name one compression")
    if len(page) != size:
        raise PageDamaged(f"it expands to {len(page)} bytes instead of {size}")
    return page


def _zlib(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        page = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise PageDamaged(f"zlib: {error}") from error
    if not stream.eof:
        raise PageDamaged("zlib: it does not end with the page")
    return page


def _lzo(data: bytes, size: int) -> bytes:
    try:
        return lzo.decompress(data, size)
    except lzo.LzoError as error:
        raise PageDamaged(f"lzo: {error}") from error


def _snappy(data: bytes, size: int) -> bytes:
    require(SNAPPY)
    import cramjam

    try:
        if cramjam.snappy.decompress_raw_len(data) != size:
            raise PageDamaged("snappy: it does not expand to one page")
        return bytes(cramjam.snappy.decompress_raw(data))
    except cramjam.DecompressionError as error:
        raise PageDamaged(f"snappy: {error}") from error


def _zstd(data: bytes, size: int) -> bytes:
    import zstandard

    try:
        if zstandard.frame_content_size(data) > size:
            raise PageDamaged("zstd: it expands to more than one page")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise PageDamaged(f"zstd: {error}") from error


_EXPANDERS: dict[int, Callable[[bytes, int], bytes]] = {
    ZLIB: _zlib,
    LZO: _lzo,
    SNAPPY: _snappy,
    ZSTD: _zstd,
}
