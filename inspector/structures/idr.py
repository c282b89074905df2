"""``struct idr`` over an xarray (include/linux/idr.h, lib/xarray.c).

An entry whose low two bits are ``10`` is internal: a node when it lies above
the small reserved values, otherwise a sibling, retry or zero marker.  NULL
slots are legal: KVM reserves an LPID before it fills it in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.errors import BadData, MemoryNotReadable
from inspector.structures.space import KernelSpace

__all__ = ["idr_entries"]

INTERNAL_MASK = 3
INTERNAL = 2
RESERVED = 4096
CHUNK_SHIFT = 6
ID_LIMIT = 1 << 32
"""Identifiers are 32-bit integers."""


def idr_entries(kernel: KernelSpace, idr: int) -> Iterator[tuple[int, int]]:
    """Yield ``(id, pointer)`` for every non-NULL entry of the idr at ``idr``.

    What is under a node that cannot be read is passed over, and the error
    raised behind all others.

    Raises:
        BadData: the nodes do not form a tree.
        MemoryNotReadable: a node leads nowhere.
    """
    base = kernel.field("idr", idr, "idr_base")
    head = kernel.field("idr", idr, "idr_rt.xa_head")
    missing: list[MemoryNotReadable] = []
    for index, pointer in _entries(kernel, head, 0, None, set(), missing):
        if index + base >= ID_LIMIT:
            raise BadData(f"the idr at {idr:#x} has an entry {index + base:#x}, which is no id")
        yield index + base, pointer
    if missing:
        raise missing[0]


def _entries(
    kernel: KernelSpace,
    entry: int,
    index: int,
    above: int | None,
    seen: set[int],
    missing: list[MemoryNotReadable],
) -> Iterator[tuple[int, int]]:
    if entry & INTERNAL_MASK != INTERNAL:
        pointer = entry & ~INTERNAL_MASK
        if pointer:
            yield index, pointer
        return
    node = entry & ~INTERNAL_MASK
    if node < RESERVED:
        return
    if node in seen:
        raise BadData(f"the xarray meets the node at {node:#x} twice")
    seen.add(node)
    offset, size = kernel.profile.struct("xa_node").place("slots")
    try:
        shift = kernel.field("xa_node", node, "shift")
        data = kernel.read(node + offset, size)
    except MemoryNotReadable as error:
        missing.append(error)
        return
    if shift % CHUNK_SHIFT or shift >= 64 or (above is not None and shift != above - CHUNK_SHIFT):
        raise BadData(f"the xarray node at {node:#x} has a shift of {shift}, which cannot be here")
    slots = np.frombuffer(data, kernel.profile.byte_order + "u8")
    for i in np.flatnonzero(slots):
        if shift == 0 and int(slots[i]) & INTERNAL_MASK == INTERNAL:
            continue
        yield from _entries(kernel, int(slots[i]), index + (int(i) << shift), shift, seen, missing)
