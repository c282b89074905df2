"""A memory image of a KVM-HV host, made without one.

``build`` turns the model's view of some VMs into physical memory as a kernel
would have it: its own page table with the vmalloc region, loaded modules
with their symbols, ``vm_list``, memslots in a red-black tree, rmap arrays in
vmalloc space, list nodes in the linear map, the tables of L0, the shadow
tables, nested guests in an idr, and L1's own tables in guest memory behind
the page table of a process.  Structure offsets are invented, but for those of
old kernels, whose containers are older too (``OLD_LAYOUTS``).

What the image holds is SYNTHETIC: no kernel ever ran in it.  It says that
the reader finds what was put there, not that a kernel would put it there.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector import pte
from inspector.image.profile import Profile, StructLayout
from inspector.memory.base import U64, addresses
from inspector.memory.segments import SegmentedMemory
from inspector.model.vm import Leaf, VmState
from tests.builders import MemslotRange

__all__ = [
    "ALL_LAYOUTS",
    "BUILD_IDS",
    "LAYOUTS",
    "LINEAR",
    "OLD_LAYOUTS",
    "Area",
    "Columns",
    "FakeVm",
    "Image",
    "Kernel",
    "Layouts",
    "Tree",
    "build",
    "columns",
    "last_lpid",
    "mapping",
    "plant",
]

LINEAR = 0xC000_0000_0000_0000
VMALLOC = 0xC008_0000_0020_0000
LINEAR_MASK = 0x0FFF_FFFF_FFFF_FFFF
RADIX_HOST = 0x40
PARTITION_FLAGS = 1 << 63 | 2 << 61 | 5 << 5
"""Dword 0 of a partition-table entry: host radix, a tree of 52 bits."""

PAGE_BITS = pte.VALID | pte.LEAF | pte.REFERENCED | pte.CHANGED | 7
LINEAR_PAGE = 1 << 21
LINEAR_ROOM = 1 << 24
"""So much more than what is written is in the linear map."""

MODULE_SIZE = 2048
THIS_MODULE = 1024
"""Offset of ``struct module`` in the memory of a module."""

BUILD_IDS = {"vmlinux": bytes(range(0xA0, 0xB4)), "kvm_hv": bytes(range(0x50, 0x64))}
TABLES_HVA = 0x7FFF_4000_0000
WORD = 8

Layouts = Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]]
"""Size of every structure, and offset and size of its members."""

LAYOUTS: Layouts = {
    "cpu_spec": (96, {"mmu_features": (24, 4)}),
    "idr": (24, {"idr_rt.xa_head": (8, 8), "idr_base": (16, 4)}),
    "kvm": (
        1024,
        {
            "mmu_lock": (4, 4),
            "mm": (40, 8),
            "memslots": (128, 8),
            "vm_list": (200, 16),
            "userspace_pid": (232, 4),
            "arch.lpid": (512, 4),
            "arch.radix": (520, 1),
            "arch.nested_enable": (523, 1),
            "arch.pgtable": (536, 8),
            "arch.l1_ptcr": (552, 8),
            "arch.kvm_nested_guest_idr": (560, 24),
            "__memslots": (768, 128),
        },
    ),
    "kvm_memory_slot": (
        208,
        {
            "gfn_node": (96, 48),
            "base_gfn": (144, 8),
            "npages": (152, 8),
            "arch.rmap": (168, 8),
            "userspace_addr": (184, 8),
            "flags": (192, 4),
            "id": (196, 2),
        },
    ),
    "kvm_memslots": (64, {"gfn_tree.rb_node": (24, 8), "node_idx": (48, 4)}),
    "kvm_nested_guest": (
        128,
        {
            "l1_lpid": (16, 4),
            "shadow_lpid": (20, 4),
            "shadow_pgtable": (24, 8),
            "l1_gr_to_hr": (40, 8),
            "process_table": (48, 8),
            "refcnt": (56, 8),
        },
    ),
    "list_head": (16, {"next": (0, 8)}),
    "mm_struct": (256, {"pgd": (72, 8)}),
    "mod_kallsyms": (32, {"symtab": (0, 8), "num_symtab": (8, 4), "strtab": (16, 8)}),
    "module": (
        512,
        {
            "list": (8, 16),
            "name": (24, 56),
            "kallsyms": (304, 8),
            "core_layout.base": (320, 8),
            "core_layout.size": (328, 4),
            "refcnt": (400, 4),
        },
    ),
    "qspinlock": (4, {"val": (0, 4)}),
    "rb_node": (24, {"rb_right": (8, 8), "rb_left": (16, 8)}),
    "rmap_nested": (16, {"list.next": (0, 8), "rmap": (8, 8)}),
    "xa_node": (576, {"shift": (0, 1), "slots": (40, 512)}),
}

NEW_CONTAINERS = ("__memslots", "arch.kvm_nested_guest_idr")


def _stored(path: Path) -> Layouts:
    """Return layouts of a real kernel, read out of what its compiler wrote."""
    structs = json.loads(path.read_text())["structs"]
    return {
        name: (layout["size"], {member: (at[0], at[1]) for member, at in layout["members"].items()})
        for name, layout in structs.items()
    }


OLD_LAYOUTS: Mapping[str, Layouts] = {
    path.stem: _stored(path) for path in sorted((Path(__file__).parent / "layouts").glob("*.json"))
}
"""Real layouts of kernels from 4.20 to 5.16: an array of memslots, ``nested_guests[]``."""

ALL_LAYOUTS: Mapping[str, Layouts] = {"new": LAYOUTS, **OLD_LAYOUTS}


def last_lpid(layouts: Layouts) -> int:
    """Return the largest L1 LPID that a kernel has room for."""
    return layouts["kvm"][1].get("arch.nested_guests", (0, WORD << 12))[1] // WORD - 1


class Area:
    """Addresses in a row, backed by pages that need not be."""

    def __init__(self, base: int, frames: U64, page_size: int) -> None:
        self.base, self.frames, self._page = base, frames, np.uint64(page_size)

    @property
    def pages(self) -> U64:
        """Address of every page."""
        return addresses(self.base) + np.arange(self.frames.size, dtype=np.uint64) * self._page

    def physical(self, where: U64) -> U64:
        """Return the physical addresses of some addresses in the area."""
        inside = where - np.uint64(self.base)
        found: U64 = self.frames[inside // self._page] + inside % self._page
        return found


class Tree(NamedTuple):
    """A radix tree not yet written: its root, and which word stands where."""

    root: int
    where: U64
    value: U64


class Row:
    """Hands out addresses in a row."""

    def __init__(self, base: int) -> None:
        self.end = base

    def take(self, size: int, align: int) -> int:
        """Return the address of some bytes with an alignment."""
        begin = -(-self.end // align) * align
        self.end = begin + size
        return begin


class Columns(NamedTuple):
    """Leaves as arrays: addresses, entries, and log2 of the sizes."""

    address: U64
    entry: U64
    shift: U64


def columns(leaves: Iterable[Leaf]) -> Columns:
    """Return leaves as arrays, in address order."""
    found = sorted(leaves)
    return Columns(*(addresses([leaf[i] for leaf in found]) for i in range(3)))


def plant(leaves: Columns, take: Callable[[int, int], int]) -> Tree:
    """Lay out a radix tree.

    Tables of the last level have 2^9 entries where they hold pages of 4 KiB
    and 2^5 where they hold pages of 64 KiB.

    Args:
        leaves: in address order, none inside another.
        take: returns the address of some bytes with an alignment.
    """
    address, entry, shift = leaves
    root = take(8 << pte.PGD_BITS, 8 << pte.PGD_BITS)
    where: list[U64] = []
    value: list[U64] = []
    key, table = addresses([0]), addresses([root])
    width = addresses([pte.PGD_BITS])
    upper = np.uint64(pte.TREE_BITS)
    while key.size:
        lower = upper - width
        row = np.searchsorted(key, address >> upper)
        here = shift == lower[row]
        index = address >> lower[row] & (np.uint64(1) << width[row]) - np.uint64(1)
        place = table[row] + index * np.uint64(WORD)
        where.append(place[here])
        value.append(entry[here])
        below = ~here
        address, entry, shift, place = (a[below] for a in (address, entry, shift, place))
        # All tables above the last level are of one width.
        upper = lower[0]
        key, first = np.unique(address >> upper, return_index=True)
        width = np.where((upper == 21) & (shift[first] == 16), 5, 9).astype(np.uint64)
        size = np.uint64(WORD) << width
        table = np.zeros(key.size, dtype=np.uint64)
        for one in np.unique(size):
            chosen = np.flatnonzero(size == one)
            begin = take(int(one) * chosen.size, int(one))
            table[chosen] = addresses(begin) + np.arange(chosen.size, dtype=np.uint64) * one
        where.append(place[first])
        value.append(np.uint64(pte.VALID) | table | width)
    return Tree(root, np.concatenate(where), np.concatenate(value))


class Kernel:
    """Physical memory under construction, and the kernel's own addresses in it."""

    def __init__(
        self,
        page_size: int,
        byte_order: str,
        layouts: Layouts = LAYOUTS,
    ) -> None:
        self.page_size, self.byte_order = page_size, byte_order
        self.layouts = layouts
        self.integer: Literal["little", "big"] = "little" if byte_order == "<" else "big"
        self._ram: NDArray[np.uint8] = np.zeros(1 << 19, dtype=np.uint8)
        self._end = page_size
        self._areas: list[Area] = []
        self._vmalloc = VMALLOC

    def take(self, size: int, align: int = 64) -> int:
        """Return the physical address of some zeroed bytes."""
        begin = -(-self._end // align) * align
        self._end = begin + size
        if self._end > self._ram.size:
            grown = np.zeros(1 << self._end.bit_length(), dtype=np.uint8)
            grown[: self._ram.size] = self._ram
            self._ram = grown
        return begin

    def pages(self, count: int) -> U64:
        """Return the physical addresses of some pages, the last one first."""
        first = self.take(count * self.page_size, self.page_size)
        return addresses(first) + np.arange(count, dtype=np.uint64)[::-1] * np.uint64(
            self.page_size
        )

    def kmalloc(self, size: int) -> int:
        """Return the linear address of some zeroed bytes."""
        return LINEAR | self.take(size)

    def vmalloc(self, size: int) -> Area:
        """Return zeroed pages in vmalloc space, with a hole behind them."""
        count = max(1, -(-size // self.page_size))
        area = Area(self._vmalloc, self.pages(count), self.page_size)
        self._vmalloc += (count + 1) * self.page_size
        self._areas.append(area)
        return area

    def new(self, name: str, **values: int) -> int:
        """Return the linear address of a new structure (see ``put``)."""
        where = self.kmalloc(self.layouts[name][0])
        self.put(name, where, **values)
        return where

    def put(self, name: str, where: int, **values: int) -> None:
        """Fill in members of a structure; a dot in a member's name is written ``__``."""
        for member, value in values.items():
            offset, size = self.layouts[name][1][member.replace("__", ".")]
            self.store(where + offset, value, min(size, WORD))

    def store(self, where: int, value: int, size: int = WORD) -> None:
        """Write an integer at a kernel address."""
        self.write(where, value.to_bytes(size, self.integer))

    def write(self, where: int, data: bytes) -> None:
        """Write bytes at a kernel address."""
        place = addresses([where + i for i in range(len(data))])
        self._ram[self.physical(place)] = np.frombuffer(data, dtype=np.uint8)

    def physical(self, where: U64) -> U64:
        """Return the physical addresses of kernel addresses."""
        if not where.size or where[0] < VMALLOC:
            return where & np.uint64(LINEAR_MASK)
        bases = [area.base for area in self._areas]
        return self._areas[int(np.searchsorted(bases, where[0], side="right")) - 1].physical(where)

    def words(self, physical: U64, values: U64, byte_order: str) -> None:
        """Write 64-bit words at aligned physical addresses."""
        self._ram.view(f"{byte_order}u8")[physical // np.uint64(WORD)] = values

    def read_word(self, physical: int, byte_order: str) -> int:
        """Return what has been written at an aligned physical address."""
        return int(self._ram.view(f"{byte_order}u8")[physical // WORD])

    def tree(self, leaves: Columns) -> int:
        """Write a radix tree; return the physical address of its root."""
        tree = plant(leaves, self.take)
        self.words(tree.where, tree.value, pte.BYTE_ORDER)
        return tree.root

    def own_table(self) -> int:
        """Write the kernel's page table, linear map first; return its linear address."""
        none = [addresses([])]
        where = np.concatenate([area.pages for area in self._areas] or none)
        frames = np.concatenate([area.frames for area in self._areas] or none)
        linear = np.arange(0, self._end + LINEAR_ROOM, LINEAR_PAGE, dtype=np.uint64)
        parts = (mapping(linear, linear, LINEAR_PAGE), mapping(where, frames, self.page_size))
        return LINEAR | self.tree(
            Columns(*(np.concatenate(part) for part in zip(*parts, strict=True)))
        )

    def memory(self) -> SegmentedMemory:
        """Return what was built, in whole pages; nothing can be added after."""
        self.take(0, self.page_size)
        self._ram.setflags(write=False)
        zero = addresses([0])
        return SegmentedMemory(self._ram, zero, addresses([self._end]), zero)

    def ring(self, head: int, links: Sequence[int]) -> None:
        """Join ``struct list_head`` at these addresses into a list."""
        around = [head, *links, head]
        for here, following in itertools.pairwise(around):
            self.store(here, following)
            self.store(following + WORD, here)

    def rbtree(self, nodes: Sequence[int]) -> int:
        """Join ``struct rb_node`` at these addresses into a balanced tree; return its root."""
        if not nodes:
            return 0
        middle = len(nodes) // 2
        left, right = self.rbtree(nodes[:middle]), self.rbtree(nodes[middle + 1 :])
        self.put("rb_node", nodes[middle], rb_left=left, rb_right=right)
        return nodes[middle]

    def xarray(self, entries: Mapping[int, int]) -> int:
        """Write xarray nodes; return the ``xa_head`` that leads to these entries."""
        if not entries:
            return 0
        if set(entries) == {0}:
            return entries[0]
        shift = 0
        while max(entries) >> shift + 6:
            shift += 6
        return self._xa_node(entries, shift)

    def _xa_node(self, entries: Mapping[int, int], shift: int) -> int:
        node = self.new("xa_node", shift=shift)
        children: dict[int, dict[int, int]] = {}
        for index, entry in entries.items():
            children.setdefault(index >> shift, {})[index & (1 << shift) - 1] = entry
        for slot, below in children.items():
            value = below[0] if shift == 0 else self._xa_node(below, shift - 6)
            self.store(node + self.layouts["xa_node"][1]["slots"][0] + WORD * slot, value)
        return node | 2


def mapping(where: U64, frames: U64, page_size: int) -> Columns:
    """Return the leaves that map pages at ascending addresses to frames."""
    shift = np.full(where.size, page_size.bit_length() - 1, dtype=np.uint64)
    return Columns(
        where & np.uint64((1 << pte.TREE_BITS) - 1), frames | np.uint64(PAGE_BITS), shift
    )


@dataclass(frozen=True)
class FakeVm:
    """One VM to put into an image.

    ``memslots`` must hold every gfn of ``state.slots``.  One more memslot,
    above them, is added for L1's tables if there are any.
    """

    state: VmState
    memslots: Sequence[MemslotRange]
    lpid: int = 1
    pid: int = 100
    radix: bool = True
    nesting: bool = True
    mmu_lock: int = 0
    node_idx: int = 0


@dataclass(frozen=True)
class Image:
    """A finished image, the profile to read it with, and where things are in it.

    ``kvm`` holds the address of each ``struct kvm``; ``memslots`` every
    VM's memslots, with the added one.
    """

    memory: SegmentedMemory
    profile: Profile
    vm_list: int
    kvm: tuple[int, ...]
    memslots: tuple[tuple[MemslotRange, ...], ...] = field(default=())


def build(
    vms: Sequence[FakeVm],
    page_size: int = 4096,
    byte_order: str = "<",
    *,
    kvm_loaded: bool = True,
    layouts: Layouts = LAYOUTS,
    pseries: bool = False,
    base: int = 0,
    furnish: Callable[[Kernel, dict[str, int]], None] | None = None,
) -> Image:
    """Return an image of a host with these VMs.

    Args:
        vms: the VMs.
        page_size: of the host.
        byte_order: of the host.
        kvm_loaded: whether KVM's modules are.
        layouts: of its structures, which say what its containers are.
        pseries: with the partition table where a pseries host keeps it.
        base: physical address the kernel was loaded at.
        furnish: adds to what the kernel holds, last, given its symbols.
    """
    kernel = Kernel(page_size, byte_order, layouts)
    kernel.take(base)
    modules = kernel.kmalloc(16)
    pointers = kernel.kmalloc(2 * WORD)
    vm_list = _modules(kernel, modules, pointers + WORD, users=len(vms), kvm_loaded=kvm_loaded)
    table = LINEAR | kernel.take(1 << 16, 1 << 16)
    kernel.store(pointers + WORD * pseries, table)
    lpids = itertools.count(1 + max((vm.lpid for vm in vms), default=0))
    made = [_vm(kernel, vm, table, lpids) for vm in vms]
    links = [address + layouts["kvm"][1]["vm_list"][0] for address, _ in made]
    kernel.ring(vm_list, links)

    cpu = kernel.kmalloc(WORD)
    kernel.store(cpu, kernel.new("cpu_spec", mmu_features=RADIX_HOST))
    size, banner = kernel.kmalloc(2 * WORD), kernel.kmalloc(64)
    data = size + WORD
    kernel.write(banner, b"Linux version 6.12.0-fake (nobody) #1\n\0")
    swapper = kernel.own_table()
    text = (
        f"OSRELEASE=6.12.0-fake\nBUILD-ID={BUILD_IDS['vmlinux'].hex()}\nPAGESIZE={page_size}\n"
        f"SYMBOL(swapper_pg_dir)={swapper:x}\nSYMBOL(_stext)={LINEAR | base:x}\n"
    )
    info = LINEAR | kernel.take(len(text), page_size)
    kernel.write(info, text.encode())
    kernel.store(data, info)
    kernel.store(size, len(text))
    symbols = {
        "cur_cpu_spec": cpu,
        "linux_banner": banner,
        "modules": modules,
        "partition_tb": pointers,
        "swapper_pg_dir": swapper,
        "vmcoreinfo_data": data,
        "vmcoreinfo_size": size,
    }
    if furnish is not None:
        furnish(kernel, symbols)
    profile = Profile(
        release="6.12.0-fake",
        build_id="00" * 20,
        byte_order=byte_order,
        page_size=page_size,
        vmcoreinfo=text,
        symbols=symbols,
        structs={
            name: StructLayout(name, size, members)
            for name, (size, members) in kernel.layouts.items()
        },
    )
    return Image(
        kernel.memory(),
        profile,
        vm_list,
        tuple(address for address, _ in made),
        tuple(memslots for _, memslots in made),
    )


def _modules(kernel: Kernel, head: int, partition: int, *, users: int, kvm_loaded: bool) -> int:
    """Write the modules and their list; return the address of vm_list in kvm's data.

    kvm's symbols end in those that share their tail; kvm_hv has a build ID.
    """
    names = ("nx_crypto", "kvm_hv", "kvm") if kvm_loaded else ("nx_crypto",)
    cores = {name: kernel.vmalloc(MODULE_SIZE).base for name in names}
    vm_list = cores.get("kvm", kernel.kmalloc(64)) + 16
    strings = b"\0kvm_init\0another_vm_list\0pseries_partition_tb\0"
    # String tables are suffix-merged: vm_list is the tail of another name.
    rows = (
        (strings.index(b"another_vm_list"), 0x1000),
        (strings.index(b"vm_list"), vm_list),
        (strings.index(b"pseries_partition_tb"), partition),
    )
    symbols = bytes(24) + b"".join(
        struct.pack(kernel.byte_order + "IBBHQQ", name, 0x11, 0, 1, value, 0)
        for name, value in rows
    )
    symtab, strtab = kernel.vmalloc(len(symbols)).base, kernel.vmalloc(len(strings)).base
    kernel.write(symtab, symbols)
    kernel.write(strtab, strings)
    links = []
    for name, core in cores.items():
        module = core + THIS_MODULE
        kallsyms = kernel.new(
            "mod_kallsyms", symtab=symtab, num_symtab=1 + len(rows), strtab=strtab
        )
        kernel.put(
            "module",
            module,
            kallsyms=kallsyms,
            core_layout__base=core,
            core_layout__size=MODULE_SIZE,
            refcnt=1 + users,
        )
        if name in BUILD_IDS:
            note = struct.pack(kernel.byte_order + "III", 4, 20, 3) + b"GNU\0" + BUILD_IDS[name]
            kernel.write(core + 256, note)
        kernel.write(module + kernel.layouts["module"][1]["name"][0], name.encode() + b"\0")
        links.append(module + kernel.layouts["module"][1]["list"][0])
    kernel.ring(head, links)
    # Empty lists, as every module has them.
    for empty in (vm_list + 32, vm_list + 64) if kvm_loaded else ():
        kernel.ring(empty, [])
    return vm_list


def _vm(
    kernel: Kernel, vm: FakeVm, partition: int, lpids: Iterator[int]
) -> tuple[int, tuple[MemslotRange, ...]]:
    state = vm.state
    assert 1 << state.page_shift == kernel.page_size
    l1_roots, extra, pgd = _l1_tables(kernel, vm)
    memslots = tuple(sorted((*vm.memslots, *extra)))
    gfn, head = _lists(kernel, state.slots)
    made = []
    for slot in memslots:
        array = kernel.vmalloc(slot.npages * WORD)
        inside = gfn - np.uint64(slot.base_gfn)
        chosen = inside < np.uint64(slot.npages)
        where = array.physical(addresses(array.base) + inside[chosen] * np.uint64(WORD))
        kernel.words(where, head[chosen], kernel.byte_order)
        made.append({**slot._asdict(), "arch__rmap": array.base})
    address = kernel.kmalloc(kernel.layouts["kvm"][0])
    sets = _memslots(kernel, address, made, vm.node_idx)
    guests = {
        lpid: kernel.new(
            "kvm_nested_guest",
            l1_lpid=lpid,
            shadow_lpid=(shadow_lpid := next(lpids)),
            shadow_pgtable=_partition(
                kernel, partition, shadow_lpid, kernel.tree(columns(shadow.leaves.values()))
            ),
            l1_gr_to_hr=l1_roots[lpid] | PARTITION_FLAGS | pte.PGD_BITS if lpid in l1_roots else 0,
            refcnt=1,
        )
        for lpid, shadow in sorted(state.shadows.items())
    }
    kernel.put(
        "kvm",
        address,
        mmu_lock=vm.mmu_lock,
        mm=kernel.new("mm_struct", pgd=LINEAR | pgd),
        memslots=sets,
        userspace_pid=vm.pid,
        arch__lpid=vm.lpid,
        arch__radix=vm.radix,
        arch__nested_enable=vm.nesting,
        arch__pgtable=_partition(
            kernel, partition, vm.lpid, kernel.tree(columns(state.host.leaves.values()))
        ),
    )
    _nested_guests(kernel, address, guests)
    return address, memslots


def _partition(kernel: Kernel, table: int, lpid: int, root: int) -> int:
    """Enter a radix tree under an LPID; return the linear address of its root."""
    where = addresses([(table & LINEAR_MASK) + 2 * WORD * lpid])
    dword = addresses([root | PARTITION_FLAGS | pte.PGD_BITS])
    kernel.words(where, dword, pte.BYTE_ORDER)
    return LINEAR | root


def _memslots(kernel: Kernel, vm: int, slots: Sequence[Mapping[str, int]], node_idx: int) -> int:
    """Write memslots into the container of the kernel's age and return its address."""
    size, members = kernel.layouts["kvm_memslots"]
    if "gfn_tree.rb_node" not in members:
        each = kernel.layouts["kvm_memory_slot"][0]
        # In the newer of them the array is a flexible one at the end.
        sets = kernel.kmalloc(size + len(slots) * each)
        kernel.put("kvm_memslots", sets, used_slots=len(slots))
        # Such kernels keep the slot with the highest gfn first.
        for i, slot in enumerate(reversed(slots)):
            kernel.put("kvm_memory_slot", sets + members["memslots"][0] + i * each, **slot)
        return sets
    offset, size = kernel.layouts["kvm_memory_slot"][1]["gfn_node"]
    nodes = [
        kernel.new("kvm_memory_slot", **slot) + offset + node_idx * (size // 2) for slot in slots
    ]
    sets = vm + kernel.layouts["kvm"][1]["__memslots"][0]
    sets += node_idx * kernel.layouts["kvm_memslots"][0]
    kernel.put("kvm_memslots", sets, gfn_tree__rb_node=kernel.rbtree(nodes), node_idx=node_idx)
    return sets


def _nested_guests(kernel: Kernel, vm: int, guests: Mapping[int, int]) -> None:
    """Write the nested guests into the container of the kernel's age."""
    members = kernel.layouts["kvm"][1]
    if "arch.nested_guests" in members:
        kernel.put("kvm", vm, arch__max_nested_lpid=max(guests, default=-1) & 0xFFFF_FFFF)
        first, size = members["arch.nested_guests"]
        for lpid, guest in guests.items():
            assert WORD * lpid < size
            kernel.store(vm + first + WORD * lpid, guest)
        return
    idr = vm + kernel.layouts["kvm"][1]["arch.kvm_nested_guest_idr"][0]
    kernel.put("idr", idr, idr_rt__xa_head=kernel.xarray(guests), idr_base=0)


def _lists(kernel: Kernel, slots: Mapping[int, Sequence[int]]) -> tuple[U64, U64]:
    """Write the list nodes of some slots; return each gfn and the word of its slot."""
    gfns = sorted(gfn for gfn, words in slots.items() if words)
    length = np.array([len(slots[gfn]) for gfn in gfns], dtype=np.int64)
    word = np.fromiter(
        itertools.chain.from_iterable(slots[gfn] for gfn in gfns), np.uint64, int(length.sum())
    )
    end = np.cumsum(length)
    in_node = np.ones(word.size, dtype=np.bool_)
    in_node[end - 1] = False
    count = int(np.count_nonzero(in_node))
    # Nodes of one list lie anywhere, as kmalloc would have it.
    order = np.random.default_rng(count).permutation(count).astype(np.uint64)
    node = addresses(kernel.kmalloc(16 * count)) + order * np.uint64(16)
    link = word.copy()
    link[in_node] = node
    physical = kernel.physical(node)
    following = link[np.flatnonzero(in_node) + 1]
    kernel.words(physical, following, kernel.byte_order)
    kernel.words(physical + np.uint64(WORD), word[in_node], kernel.byte_order)
    return addresses(gfns), link[end - length]


def _l1_tables(kernel: Kernel, vm: FakeVm) -> tuple[dict[int, int], tuple[MemslotRange, ...], int]:
    """Write L1's tables into guest memory; return their roots, their memslot, and the process's."""
    tables = vm.state.l1_tables
    page = kernel.page_size
    top = max((slot.base_gfn + slot.npages for slot in vm.memslots), default=0) * page
    base = -(-top // (1 << 21)) * (1 << 21)
    places = Row(base)
    trees = {
        lpid: plant(columns(found.leaves.values()), places.take) for lpid, found in tables.items()
    }
    if not trees:
        return {}, (), kernel.tree(columns(()))
    count = -(-(places.end - base) // page)
    area = Area(base, kernel.pages(count), page)
    for tree in trees.values():
        kernel.words(area.physical(tree.where), tree.value, pte.BYTE_ORDER)
    memslot = MemslotRange(
        base // page, count, TABLES_HVA, 1 + max((slot.id for slot in vm.memslots), default=-1)
    )
    hva = area.pages - np.uint64(base) + np.uint64(TABLES_HVA)
    pgd = kernel.tree(mapping(hva, area.frames, page))
    return {lpid: tree.root for lpid, tree in trees.items()}, (memslot,), pgd
