"""The containers in which KVM keeps memslots and nested guests, which changed over time.

The form of a container is recognized by its members, the newest form first,
and never by the kernel's version, because changes were backported.

Every container holds much of its contents more than once, and the walk
compares the copies.  A set of memslots is never changed while it is in use:
the kernel changes the other set, or a copy, and then points ``kvm->memslots``
to it.  So words of the set in use that disagree are not an unfinished update.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.errors import BadData, MemoryNotReadable
from inspector.kvm.memslot_set import MemslotSet
from inspector.memory.interface import why_missing
from inspector.memory.numbers import addresses
from inspector.structures.idr import idr_entries
from inspector.structures.space import KernelSpace
from inspector.structures.witness import Comparison, Mismatch, Word

__all__ = ["memslot_addresses", "nested_guest_addresses"]

MEMSLOT_LIMIT = 1 << 16
POINTER = 8


def memslot_addresses(
    kernel: KernelSpace, vm: int, comparison: Comparison | None = None
) -> Iterator[int]:
    """Yield the address of every ``struct kvm_memory_slot`` of address space 0.

    From 5.17 on (a54d806688fe), ``kvm->memslots[0]`` is one of two sets of
    the same memslots, with a tree by gfn; ``node_idx`` says which of the two
    nodes in a memslot belongs to it.  Before, it was an array of memslots,
    used from its beginning.

    A memslot that is missing from the tree by gfn is yielded too, if it is in
    one of the set's other two containers: the hash by id, and the tree by
    address in the process.
    """
    if comparison is None:
        comparison = Comparison()
    slots = kernel.pointer(vm + kernel.profile.struct("kvm").offset("memslots"))
    layout = kernel.profile.struct("kvm_memory_slot")
    container = kernel.profile.struct("kvm_memslots")
    if "gfn_tree.rb_node" in container or "used_slots" not in container:
        yield from MemslotSet(kernel, slots, comparison).slots()
        return
    used = kernel.field("kvm_memslots", slots, "used_slots")
    if used > MEMSLOT_LIMIT:
        raise BadData(f"the memslots at {slots:#x} say that {used} of them are used")
    first = slots + container.offset("memslots")
    found = range(first, first + used * layout.size, layout.size)
    yield from found
    _confirm_array(kernel, slots, found, comparison)


def _confirm_array(kernel: KernelSpace, slots: int, found: range, comparison: Comparison) -> None:
    """Compare the memslots of an array with its index by id, and check their order.

    The kernel finds a gfn by binary search (``search_memslots``) among
    memslots from the highest gfn to the lowest, and an id by ``id_to_index``.
    """
    layout, container = (kernel.profile.struct(n) for n in ("kvm_memory_slot", "kvm_memslots"))
    order = kernel.profile.byte_order
    (to_gfn, _), (to_id, id_size) = layout.place("base_gfn"), layout.place("id")
    # One row per memslot, in the order of the array.
    every = np.arange(found.start, found.stop, found.step, dtype=np.uint64)
    gfn, known = kernel.words(every + np.uint64(to_gfn))
    for row in np.flatnonzero((gfn[:-1] <= gfn[1:]) & known[:-1] & known[1:]):
        comparison.mismatches.append(
            Mismatch(
                f"the array of memslots at {slots:#x}: memslot {row} begins at gfn "
                f"{int(gfn[row]):#x}, and the one after it at {int(gfn[row + 1]):#x}",
                "memslots from the highest gfn to the lowest: the kernel does a binary search",
                tuple(
                    Word(f"base_gfn of memslot {i}", found[int(i)] + to_gfn, int(gfn[i]))
                    for i in (row, row + 1)
                ),
            )
        )
    comparison.words += len(found)
    ids, known = kernel.read_many(every + np.uint64(to_id), id_size)
    if "id_to_index" not in container or not known.all():
        comparison.lacks("this target has no index of the memslots by id")
        return
    offset, size = container.place("id_to_index")
    numbers = ids.view(f"{order}u{id_size}").reshape(-1).astype(np.int64)
    inside = numbers < size // id_size
    where = addresses(slots + offset) + numbers.astype(np.uint64) * np.uint64(id_size)
    data, known = kernel.read_many(where[inside], id_size)
    if not known.all():
        comparison.lacks("this target has no index of the memslots by id")
        return
    index = np.full(numbers.size, -1, dtype=np.int64)
    index[inside] = data.view(f"{order}i{id_size}").reshape(-1)
    right = index == np.arange(numbers.size)
    comparison.confirmed += int(np.count_nonzero(right))
    for row in np.flatnonzero(~right):
        words = [Word(f"id of memslot {row}", found[int(row)] + to_id, int(numbers[row]), id_size)]
        if inside[row]:
            words.append(Word("id_to_index", int(where[row]), int(index[row]), id_size))
        comparison.mismatches.append(
            Mismatch(
                f"the array of memslots at {slots:#x}: memslot {row} has the id {numbers[row]}, "
                + (f"which leads to {index[row]}" if inside[row] else "which no memslot can have"),
                "an id of its own, which id_to_index leads back from",
                tuple(words),
            )
        )


def nested_guest_addresses(
    kernel: KernelSpace, vm: int, comparison: Comparison | None = None
) -> Iterator[tuple[int, int]]:
    """Yield ``(L1 LPID, address)`` of every ``struct kvm_nested_guest``.

    From 5.19 on they are in an idr.  Before, they were in an array of pointers
    indexed by LPID; ``max_nested_lpid`` is the last one in use, -1 for none.
    """
    if comparison is None:
        comparison = Comparison()
    layout = kernel.profile.struct("kvm")
    if "arch.kvm_nested_guest_idr" in layout or "arch.nested_guests" not in layout:
        idr = vm + layout.offset("arch.kvm_nested_guest_idr")
        _confirm_idr(kernel, idr, comparison)
        yield from idr_entries(kernel, idr, comparison)
        return
    yield from _nested_array(kernel, vm, comparison)


def _confirm_idr(kernel: KernelSpace, idr: int, comparison: Comparison) -> None:
    """Check that identifiers are LPIDs: ``idr_init`` sets base and next to 0, and they stay so."""
    layout = kernel.profile.struct("idr")
    for member in ("idr_base", "idr_next"):
        if member not in layout:
            comparison.lacks(f"the layout of this kernel was taken without idr.{member}")
            continue
        offset, size = layout.place(member)
        try:
            value = kernel.unsigned(idr + offset, size)
        except MemoryNotReadable:
            comparison.lacks(f"this target has no idr.{member}")
            continue
        if value:
            comparison.mismatches.append(
                Mismatch(
                    f"the idr at {idr:#x} has the {member} {value}",
                    "0: KVM finds a nested guest under its LPID, and never takes the next free one",
                    (Word(member, idr + offset, value, size),),
                )
            )


def _nested_array(
    kernel: KernelSpace, vm: int, comparison: Comparison
) -> Iterator[tuple[int, int]]:
    """Yield the guests of ``nested_guests[]``, and compare ``max_nested_lpid`` with them.

    The kernel looks no further than ``max_nested_lpid``. Both change only
    under ``mmu_lock`` (``kvmhv_get_nested``, ``kvmhv_remove_nested``).
    """
    layout = kernel.profile.struct("kvm")
    offset, size = layout.place("arch.nested_guests")
    last = kernel.field("kvm", vm, "arch.max_nested_lpid")
    # -1, which stands for no guest, was read as an unsigned number.
    count = (last + 1) & 0xFFFF_FFFF
    if count * POINTER > size:
        raise BadData(f"the VM at {vm:#x} says its largest L1 LPID is {count - 1}")
    if vm % POINTER:
        raise BadData(f"no struct kvm can be at {vm:#x}, which is not aligned")
    first = vm + offset
    # One row per LPID, also for those after max_nested_lpid.
    where = addresses(first) + np.arange(size // POINTER, dtype=np.uint64) * np.uint64(POINTER)
    pointers, present = kernel.words(where)
    found = {int(lpid): int(pointers[lpid]) for lpid in np.flatnonzero(pointers * present)}
    yield from found.items()
    there = int(np.count_nonzero(present))
    comparison.words += there
    comparison.confirmed += there
    if not present[count:].all():
        comparison.lacks("entries of nested_guests beyond max_nested_lpid are missing")
    missing = np.flatnonzero(~present[:count])
    most = max(found, default=-1)
    if most >= count or (most != count - 1 and present[:count].all()):
        to_last, width = layout.place("arch.max_nested_lpid")
        comparison.mismatches.append(
            Mismatch(
                f"max_nested_lpid is {count - 1}, and the last entry of nested_guests that is in "
                f"use is {'none' if most < 0 else most}",
                "the largest LPID in use, -1 for none: the kernel looks no further",
                (
                    Word("max_nested_lpid", vm + to_last, last, width),
                    *(
                        Word(f"nested_guests[{lpid}]", first + lpid * POINTER, found[lpid])
                        for lpid in sorted(found)
                        if lpid >= count
                    ),
                ),
            )
        )
    if missing.size:
        place = int(where[missing[0]])
        why = why_missing(kernel, place, POINTER)
        raise MemoryNotReadable(place, POINTER * missing.size, why, kernel.name)
