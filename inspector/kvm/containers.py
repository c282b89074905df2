"""What KVM keeps its memslots and nested guests in, which changed over time.

The newest form is probed for first, by its member; versions are never asked,
since changes were backported.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.errors import BadData, MemoryNotReadable
from inspector.structures.idr import idr_entries
from inspector.structures.rbtree import tree_nodes
from inspector.structures.space import KernelSpace

__all__ = ["memslot_addresses", "nested_guest_addresses"]

MEMSLOT_LIMIT = 1 << 16
POINTER = 8
PART = 1 << 12
"""An array is read in parts, so that one that is missing does not hide the others."""


def memslot_addresses(kernel: KernelSpace, vm: int) -> Iterator[int]:
    """Yield the address of every ``struct kvm_memory_slot`` of address space 0.

    Since 5.17 (a54d806688fe) ``kvm->memslots[0]`` is one of two sets of the
    same slots, a tree by gfn; ``node_idx`` says which of the two nodes in a
    slot belongs to it.  Before, it was an array of slots, used from its
    beginning.
    """
    slots = kernel.pointer(vm + kernel.profile.struct("kvm").offset("memslots"))
    layout = kernel.profile.struct("kvm_memory_slot")
    container = kernel.profile.struct("kvm_memslots")
    if "gfn_tree.rb_node" in container or "used_slots" not in container:
        root = kernel.field("kvm_memslots", slots, "gfn_tree.rb_node")
        index = kernel.field("kvm_memslots", slots, "node_idx")
        offset = layout.offset("gfn_node") + index * kernel.profile.struct("rb_node").size
        for node in tree_nodes(kernel, root):
            yield node - offset
        return
    used = kernel.field("kvm_memslots", slots, "used_slots")
    if used > MEMSLOT_LIMIT:
        raise BadData(f"the memslots at {slots:#x} say that {used} of them are used")
    first = slots + container.offset("memslots")
    yield from range(first, first + used * layout.size, layout.size)


def nested_guest_addresses(kernel: KernelSpace, vm: int) -> Iterator[tuple[int, int]]:
    """Yield ``(L1 LPID, address)`` of every ``struct kvm_nested_guest``.

    They are in an idr since 5.19; before, in an array of pointers indexed by
    LPID, of which ``max_nested_lpid`` (-1 for none) is the last in use.
    """
    layout = kernel.profile.struct("kvm")
    if "arch.kvm_nested_guest_idr" in layout or "arch.nested_guests" not in layout:
        yield from idr_entries(kernel, vm + layout.offset("arch.kvm_nested_guest_idr"))
        return
    offset, size = layout.place("arch.nested_guests")
    count = kernel.field("kvm", vm, "arch.max_nested_lpid") + 1 & 0xFFFF_FFFF
    if count * POINTER > size:
        raise BadData(f"the VM at {vm:#x} says its largest L1 LPID is {count - 1}")
    if vm % POINTER:
        raise BadData(f"no struct kvm can be at {vm:#x}, which is not aligned")
    first, end = vm + offset, vm + offset + count * POINTER
    missing: list[MemoryNotReadable] = []
    for place in (first, *range(first - first % PART + PART, end, PART)):
        length = min(PART - place % PART, end - place)
        try:
            raw = kernel.read(place, length)
        except MemoryNotReadable as error:
            missing.append(error)
            continue
        pointers = np.frombuffer(raw, dtype=kernel.profile.byte_order + "u8")
        for row in np.flatnonzero(pointers):
            yield (place - first) // POINTER + int(row), int(pointers[row])
    if missing:
        raise missing[0]
