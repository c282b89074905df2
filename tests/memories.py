"""Memories that are made or changed for a test: with other bytes, or without some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from inspector.memory.numbers import addresses
from inspector.memory.segments import SegmentedMemory

__all__ = ["of_bytes", "of_segments", "patch", "pieces_of", "without"]


def of_segments(segments: Iterable[tuple[int, bytes]]) -> SegmentedMemory:
    """Return a memory of these pieces, in their order in the buffer."""
    pieces = list(segments)
    sizes = addresses([len(data) for _, data in pieces])
    return SegmentedMemory(
        np.frombuffer(b"".join(data for _, data in pieces), dtype=np.uint8),
        addresses([start for start, _ in pieces]),
        sizes,
        np.cumsum(sizes, dtype=np.uint64) - sizes,
    )


def of_bytes(content: Mapping[int, int]) -> SegmentedMemory:
    """Return a memory of single bytes by address."""
    return of_segments((address, bytes([value])) for address, value in content.items())


def pieces_of(memory: SegmentedMemory) -> list[tuple[int, bytes]]:
    """Return the segments of a memory with their bytes."""
    return [
        (int(start), memory.read(int(start), int(size)))
        for start, size in zip(memory.starts, memory.sizes, strict=True)
    ]


def patch(memory: SegmentedMemory, address: int, data: bytes) -> SegmentedMemory:
    """Return a memory with other bytes at a physical address, which must be in one segment."""
    pieces = pieces_of(memory)
    for i, (start, content) in enumerate(pieces):
        inside = address - start
        if inside >= 0 and inside + len(data) <= len(content):
            pieces[i] = (start, content[:inside] + data + content[inside + len(data) :])
            return of_segments(pieces).within(memory.ram)
    raise ValueError(f"{address:#x} is not in the memory")


def without(memory: SegmentedMemory, address: int, length: int) -> SegmentedMemory:
    """Return a memory from which some bytes are missing."""
    pieces = []
    for start, content in pieces_of(memory):
        cut = max(0, min(len(content), address - start))
        rest = max(0, min(len(content), address + length - start))
        pieces += [(start, content[:cut]), (start + rest, content[rest:])]
    rest_of_it = ((start, content) for start, content in pieces if content)
    return of_segments(rest_of_it).within(memory.ram)
