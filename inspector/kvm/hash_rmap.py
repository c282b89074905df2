"""Read the rmap arrays of a hash guest, and the rings of HPT entries they lead to.

All rings are followed in parallel, one entry of each per read.  L0 keeps the
links in an array of its own beside the guest's HPT, so none of the guest's
memory is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector import hash_encoding
from inspector.errors import BadData, MemoryNotReadable, TargetNotSupported
from inspector.kvm.rmap import read_arrays
from inspector.kvm.snapshot import Gap, HashRmaps, Memslot, Part, RingProblem
from inspector.memory.numbers import U64, addresses
from inspector.structures.space import KernelSpace

__all__ = ["read_hash_rmaps"]


@dataclass(frozen=True)
class _Links:
    """The array ``kvm->arch.hpt.rev``: one ``revmap_entry`` for each entry of the HPT."""

    address: int
    count: int


@dataclass(frozen=True)
class _Front:
    """The rings that are still followed: one row per ring.

    ``slot`` is the slot that the ring belongs to, ``index`` the index of the
    next HPT entry, ``place`` the address at which that index was read, and
    ``before`` the index of the HPT entry from which it was read.
    """

    slot: NDArray[np.int64]
    index: U64
    place: U64
    before: U64

    def kept(self, rows: NDArray[np.bool_]) -> _Front:
        return _Front(self.slot[rows], self.index[rows], self.place[rows], self.before[rows])


@dataclass(frozen=True)
class _Rings:
    index: U64
    slot: NDArray[np.int64]
    problems: list[RingProblem]


def read_hash_rmaps(
    kernel: KernelSpace, vm: int, memslots: tuple[Memslot, ...], gaps: list[Gap]
) -> HashRmaps:
    """Read every word of every memslot, and follow the rings if the links can be found.

    If the links cannot be found, a gap is added to ``gaps``.
    """
    memslot, gfn, where, word, unread, pages = read_arrays(kernel, memslots)
    slot = np.flatnonzero(word & np.uint64(hash_encoding.PRESENT))
    head = word & np.uint64(hash_encoding.INDEX_MASK)
    rings, followed = _Rings(head[slot], slot, []), True
    if slot.size:
        try:
            rings = _follow(kernel, _links(kernel, vm), slot, head, where)
        except (BadData, MemoryNotReadable, TargetNotSupported) as error:
            followed = False
            gaps.append(Gap(f"rings of HPT entries are not followed: {error}", Part.RINGS))
    # The indices are in the order of their slots, so each slot has a range of them.
    start = np.concatenate(([0], np.cumsum(np.bincount(rings.slot, minlength=gfn.size))))
    return HashRmaps(
        memslot,
        gfn,
        where,
        word,
        start.astype(np.int64),
        rings.index,
        followed,
        tuple(rings.problems),
        tuple(unread),
        tuple(pages),
    )


def _links(kernel: KernelSpace, vm: int) -> _Links:
    if "revmap_entry" not in kernel.profile.structs:
        raise TargetNotSupported("the layout of this kernel was taken without struct revmap_entry")
    address = kernel.field("kvm", vm, "arch.hpt.rev")
    order = kernel.field("kvm", vm, "arch.hpt.order")
    if not address or not hash_encoding.MIN_ORDER <= order <= hash_encoding.MAX_ORDER:
        raise BadData(f"an HPT of order {order} with its links at {address:#x} cannot be")
    return _Links(address, 1 << (order - hash_encoding.HPTE_SHIFT))


def _follow(
    kernel: KernelSpace, links: _Links, slot: NDArray[np.int64], head: U64, where: U64
) -> _Rings:
    """Follow the rings of some slots forward; return their indices grouped by slot.

    Every entry must lead back to the one it was reached from.  So none but
    the head can be met twice, and every ring ends.
    """
    layout = kernel.profile.struct("revmap_entry")
    forward, backward = layout.place("forw"), layout.place("back")
    indices: list[U64] = []
    slots: list[NDArray[np.int64]] = []
    problems: list[RingProblem] = []

    def stop(kind: str, slot: NDArray[np.int64], place: U64, index: U64) -> None:
        problems.extend(
            RingProblem(int(s), kind, int(p), int(i))
            for s, p, i in zip(slot, place, index, strict=True)
        )

    def entry_of(index: U64) -> U64:
        return addresses(links.address) + index * np.uint64(layout.size)

    front = _Front(slot, head[slot], where[slot], head[slot])
    # By slot: the entry that the head leads back to, which must be the last one of the ring.
    last = np.zeros(head.size, dtype=np.uint64)
    while front.slot.size:
        outside = front.index >= np.uint64(links.count)
        stop("range", front.slot[outside], front.place[outside], front.index[outside])
        front = front.kept(~outside)

        records = kernel.read_many(entry_of(front.index), layout.size)
        lost = ~records.present
        stop("unreadable", front.slot[lost], front.place[lost], front.index[lost])
        front = front.kept(~lost)
        forw, back = (
            np.ascontiguousarray(records.data[~lost, offset : offset + size])
            .view(f"{kernel.profile.byte_order}u{size}")
            .reshape(-1)
            .astype(np.uint64)
            for offset, size in (forward, backward)
        )
        # The first round reads the heads themselves.
        if not slots:
            last[front.slot] = back
        else:
            torn = back != front.before
            place = entry_of(front.index[torn]) + np.uint64(backward[0])
            stop("back", front.slot[torn], place, back[torn])
            front, forw = front.kept(~torn), forw[~torn]
        indices.append(front.index)
        slots.append(front.slot)

        closed = forw == head[front.slot]
        torn = closed & (last[front.slot] != front.index)
        place = entry_of(forw[torn]) + np.uint64(backward[0])
        stop("back", front.slot[torn], place, last[front.slot[torn]])
        place = entry_of(front.index) + np.uint64(forward[0])
        front = _Front(front.slot, forw, place, front.index).kept(~closed)
    owner = np.concatenate(slots)
    order = np.argsort(owner, kind="stable")
    return _Rings(np.concatenate(indices)[order], owner[order], problems)
