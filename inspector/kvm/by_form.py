"""Find KVM's list of VMs by its form, where neither the module nor a file names it.

``vm_list`` lies in the data of the module kvm, and its members are ``struct
kvm``.  If no such list is found, that means "no VMs" only if no VM can exist:
every VM holds a reference to the module kvm_hv (``kvm_arch_init_vm`` in
arch/powerpc/kvm/powerpc.c).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inspector.encoding import MAX_LPID
from inspector.errors import BadData, InspectorError
from inspector.kernel.host import kvm_modules
from inspector.memory.numbers import U64, addresses
from inspector.regions import LINEAR_MAP, LINEAR_SIZE
from inspector.structures.lists import list_entries
from inspector.structures.modules import module_contents
from inspector.structures.space import KernelSpace

__all__ = ["vms_by_form"]

WORD = 8
MODULE_REF_BASE = 1
"""``module.refcnt`` of a loaded module that is not in use (kernel/module/main.c)."""

SHOWN = 3


def vms_by_form(kernel: KernelSpace) -> list[int]:
    """Return the address of every VM.

    Raises:
        TargetNotSupported: KVM-HV is not loaded.
        BadData: VMs exist, or may exist, but no list of them was found, or several lists were.
    """
    modules = kvm_modules(kernel)
    found: dict[int, list[int]] = {}
    refused: list[str] = []
    for base, data in module_contents(kernel, modules["kvm"]):
        for head in _heads(kernel, base, data):
            try:
                found[head] = _vms(kernel, head)
            except InspectorError as error:
                refused.append(str(error))
    if len(found) > 1:
        shown = " and ".join(f"{head:#x}" for head in sorted(found))
        raise BadData(
            f"{len(found)} lists in the module kvm have the form of the list of VMs, at {shown}; "
            "give --kernel and --modules with the kernel's files"
        )
    for vms in found.values():
        return vms
    users = kernel.field("module", modules["kvm_hv"], "refcnt") - MODULE_REF_BASE
    if users:
        tried = "; ".join(refused[:SHOWN]) or "its lists hold something else"
        raise BadData(
            f"no list in the module kvm has the form of the list of VMs ({tried}), but the module "
            f"kvm_hv has {users} users (module.refcnt at {_refcnt(kernel, modules['kvm_hv']):#x}), "
            "so there may be VMs; inspect it again, or give --kernel and --modules with the "
            "kernel's files"
        )
    return []


def _refcnt(kernel: KernelSpace, module: int) -> int:
    return module + kernel.profile.struct("module").offset("refcnt")


def _heads(kernel: KernelSpace, base: int, data: bytes) -> list[int]:
    """Return the addresses in a module's memory of list heads whose first entry is a VM."""
    # One row per word of the memory.  ``link`` marks the words that can be pointers out of it,
    # so a list that is empty, and points to itself, is none.
    words = np.frombuffer(data[: len(data) // WORD * WORD], dtype=kernel.profile.byte_order + "u8")
    words = words.astype(np.uint64)
    here = addresses(base) + np.arange(words.size, dtype=np.uint64) * np.uint64(WORD)
    link = (words >= np.uint64(LINEAR_MAP)) & (words % np.uint64(WORD) == 0)
    link &= words - np.uint64(base) >= np.uint64(len(data))
    rows = np.flatnonzero(link[:-1] & link[1:])
    # A head is two links, next and prev, of which next->prev and prev->next are the head itself.
    for ends, member in ((words, WORD), (words[1:], 0)):
        back, known = kernel.words(ends[rows] + np.uint64(member))
        rows = rows[known & (back.reshape(-1) == here[rows])]
    offset = kernel.profile.struct("kvm").offset("vm_list")
    rows = rows[_are_vms(kernel, words[rows] - np.uint64(offset))]
    return [int(head) for head in here[rows]]


def _vms(kernel: KernelSpace, head: int) -> list[int]:
    """Return the VMs on a list.

    Raises:
        BadData: an entry of the list does not have the form of a VM.
    """
    vms = list(list_entries(kernel, head, "kvm", "vm_list"))
    fits = _are_vms(kernel, addresses(vms))
    if not fits.all():
        wrong = vms[int(np.argmin(fits))]
        raise BadData(f"the list at {head:#x} leads to {wrong:#x}, which is not formed as a VM")
    return vms


def _are_vms(kernel: KernelSpace, vms: U64) -> NDArray[np.bool_]:
    """Say which addresses hold something that has the form of a ``struct kvm``.

    The current set of memslots is one of the structure's own (from 5.17 on,
    a54d806688fe), its process has a page table, its LPID is possible, and a
    radix guest has a page table of its own.
    """
    layout = kernel.profile.struct("kvm")
    fits = np.ones(vms.size, dtype=np.bool_)

    def field(struct: str, where: U64, member: str) -> U64:
        offset, size = kernel.profile.struct(struct).place(member)
        data, present = kernel.read_many(where + np.uint64(offset), size)
        fits[~present] = False
        # One row of bytes per VM: the member, extended to 64 bits in the kernel's byte order.
        whole = np.zeros((vms.size, WORD), dtype=np.uint8)
        if kernel.profile.byte_order == "<":
            whole[:, :size] = data
        else:
            whole[:, WORD - size :] = data
        return whole.view(kernel.profile.byte_order + "u8").reshape(-1).astype(np.uint64)

    if "__memslots" in layout:
        offset, size = layout.place("__memslots")
        inside = field("kvm", vms, "memslots") - vms - np.uint64(offset)
        one = kernel.profile.struct("kvm_memslots").size
        fits &= (inside < np.uint64(size)) & (inside % np.uint64(one) == 0)
    fits &= _linear(field("mm_struct", field("kvm", vms, "mm"), "pgd"))
    fits &= field("kvm", vms, "arch.lpid") <= np.uint64(MAX_LPID)
    radix = field("kvm", vms, "arch.radix")
    fits &= radix <= np.uint64(1)
    fits &= (radix == 0) | _linear(field("kvm", vms, "arch.pgtable"))
    return fits


def _linear(where: U64) -> NDArray[np.bool_]:
    # Unsigned: an address below the linear map wraps to a large number.
    inside: NDArray[np.bool_] = where - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
    return inside
