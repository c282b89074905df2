"""Writes small kdump-compressed dumps, flattened files and LZO streams with any content."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import zstandard

__all__ = ["COMPRESSORS", "KdumpSpec", "flattened", "kdump", "lzo_compress"]

HEADER = 464
SUB_HEADER = "QIIQQQQQQQQQQQ"
ZLIB, LZO, SNAPPY, INCOMPLETE, ZSTD = 0x1, 0x2, 0x4, 0x8, 0x20


def lzo_compress(data: bytes) -> bytes:
    """Return an LZO1X stream of runs of literals and of matches with every kind of code."""
    out = bytearray()
    literals = bytearray()
    at = 0
    first = True
    # The place where the last match keeps the count of the literals that follow it.
    tail = 0

    def flush() -> None:
        nonlocal first
        count = len(literals)
        if count == 0:
            return
        if first and count <= 238:
            out.append(17 + count)
        elif count <= 3:
            out[tail] |= count
        elif count <= 18:
            out.append(count - 3)
        else:
            out.append(0)
            out.extend(bytes((count - 19) // 255))
            out.append((count - 19) % 255 + 1)
        out.extend(literals)
        literals.clear()
        first = False

    while at < len(data):
        length, distance = _match(data, at)
        if length < 3:
            literals.append(data[at])
            at += 1
            continue
        flush()
        tail = _put_match(out, length, distance)
        first = False
        at += length
    flush()
    out += bytes([17, 0, 0])
    return bytes(out)


def _match(data: bytes, at: int) -> tuple[int, int]:
    best = (0, 0)
    limit = min(1000, len(data) - at)
    for distance in (1, 2, 3, 5, 8, 100, 2049, 3000, 16385, 20000, 40000):
        # no distance gives a longer match than the limit, and pages of zeros reach it at once
        if distance > at or best[0] == limit:
            break
        length = 0
        while length < limit and data[at + length] == data[at + length - distance]:
            length += 1
        if length > best[0]:
            best = (length, distance)
    return best


def _put_match(out: bytearray, length: int, distance: int) -> int:
    """Append a match; return the place of its low bits."""
    if length <= 8 and distance <= 2048:
        low = distance - 1
        out.append(((length - 1) << 5) | ((low & 7) << 2))
        out.append(low >> 3)
        return len(out) - 2
    if distance <= 16384:
        mark, mask, low = 32, 31, distance - 1
    else:
        mark, mask, low = 16 | (8 if distance >= 0x8000 else 0), 7, (distance - 0x4000) & 0x3FFF
    if length - 2 <= mask:
        out.append(mark | (length - 2))
    else:
        rest = length - 2 - mask
        out.append(mark)
        out.extend(bytes((rest - 1) // 255))
        out.append((rest - 1) % 255 + 1)
    out.append((low & 63) << 2)
    out.append(low >> 6)
    return len(out) - 2


def _snappy(data: bytes) -> bytes:
    import cramjam

    return bytes(cramjam.snappy.compress_raw(data))


COMPRESSORS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (0, lambda data: data),
    "zlib": (ZLIB, lambda data: zlib.compress(data, 1)),
    "lzo": (LZO, lzo_compress),
    "snappy": (SNAPPY, _snappy),
    "zstd": (ZSTD, lambda data: zstandard.compress(data)),
}


@dataclass
class KdumpSpec:
    """A dump to write: its pages by their number; ``excluded`` pages are memory but not dumped."""

    pages: Mapping[int, bytes]
    excluded: Iterable[int] = ()
    order: str = "<"
    page_size: int = 4096
    compression: str = "zlib"
    level: int = 31
    version: int = 6
    count: int = 0
    notes: bytes = b""
    vmcoreinfo: bytes = b""
    machine: bytes = b"ppc64le"
    status: int = 0
    split: tuple[int, int] | None = None
    sub_blocks: int = 1
    bitmap_blocks: int = 0


def kdump(spec: KdumpSpec) -> bytes:
    """Return the bytes of the dump."""
    size, order = spec.page_size, spec.order
    excluded = set(spec.excluded)
    known = [*spec.pages, *excluded]
    count = spec.count or max(known, default=-1) + 1
    blocks = spec.bitmap_blocks or 2 * max(1, -(-count // (size * 8)))
    flag, compress = COMPRESSORS[spec.compression]

    notes_at = size + struct.calcsize("<" + SUB_HEADER)
    vmcoreinfo_at = notes_at + len(spec.notes)
    first, end = spec.split or (0, 0)
    header = b"KDUMP   " + struct.pack(order + "I", spec.version)
    header += b"Linux".ljust(65, b"\0") + bytes(3 * 65) + spec.machine.ljust(65, b"\0")
    header = header.ljust(424, b"\0") + struct.pack(
        order + "10I",
        spec.status | flag,
        size,
        spec.sub_blocks,
        blocks,
        min(count, 0xFFFF_FFFF),
        *(0, 0, 0, 0, 1),
    )
    sub = struct.pack(
        order + SUB_HEADER,
        0,
        spec.level,
        int(spec.split is not None),
        *(min(first, 0xFFFF_FFFF), min(end, 0xFFFF_FFFF)),
        *(vmcoreinfo_at if spec.vmcoreinfo else 0, len(spec.vmcoreinfo)),
        *(notes_at if spec.notes else 0, len(spec.notes)),
        *(0, 0, first, end, count),
    )
    out = bytearray(header.ljust(size, b"\0"))
    out += (sub + spec.notes + spec.vmcoreinfo).ljust(spec.sub_blocks * size, b"\0")
    for numbers in (known, list(spec.pages)):
        bitmap = bytearray(blocks // 2 * size)
        for number in numbers:
            bitmap[number >> 3] |= 1 << (number & 7)
        out += bitmap

    written = sorted(spec.pages)
    if spec.split:
        written = [number for number in written if first <= number < end]
    place = len(out) + 24 * len(written)
    descriptors, data = bytearray(), bytearray()
    zero = -1
    for number in written:
        page = spec.pages[number]
        if not any(page):
            if zero < 0:
                zero = place + len(data)
                data += page
            descriptors += struct.pack(order + "QIIQ", zero, size, 0, 0)
            continue
        packed, used = compress(page), flag
        if len(packed) >= size:
            packed, used = page, 0
        descriptors += struct.pack(order + "QIIQ", place + len(data), len(packed), used, 0)
        data += packed
    return bytes(out + descriptors + data)


def flattened(pieces: Iterable[tuple[int, bytes]], *, end: bool = True) -> bytes:
    """Return the flattened form of a file that is written in these pieces."""
    out = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    out = out.ljust(4096, b"\0")
    for position, data in pieces:
        out += struct.pack(">qq", position, len(data)) + data
    return out + struct.pack(">qq", -1, -1) if end else out
