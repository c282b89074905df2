"""What the tool knows of one kernel: symbols, structure offsets, page size.

A profile is the only thing that the packages above this one take from a kernel
image.  It is plain data, and every capture contains its own, so that it can be
opened without another file.

JSON form (``PROFILE_FORMAT`` 1)::

    {"format": 1, "release": "...", "build_id": "...", "byte_order": "little",
     "page_size": 4096, "vmcoreinfo": "OSRELEASE=...\\n...",
     "symbols": {"swapper_pg_dir": "0xc000...", ...},
     "structs": {"kvm": {"size": 19888, "members": {"mm": [72, 8], ...}}, ...},
     "module_btf": {"kvm": "sha256...", "kvm_hv": "sha256..."},
     "module_build_ids": {"kvm_hv": "5886ab..."},
     "anchors": {"vm_list": ["halt_poll_ns", -232]}}

Member offsets and sizes are in bytes.  See ``manual/layout.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from inspector.errors import BadData, TargetNotSupported
from inspector.image.btf import Member
from inspector.image.vmcoreinfo import PAGE_SIZES
from inspector.storage import DAMAGE, parsed_json

__all__ = [
    "OPTIONAL_SYMBOLS",
    "PROFILE_FORMAT",
    "PROFILE_LIMIT",
    "SYMBOLS",
    "Profile",
    "StructLayout",
    "layouts",
]

PROFILE_FORMAT = 1
PROFILE_LIMIT = 1 << 20
"""Most bytes of a profile in JSON; real ones have about 7,000."""
STRUCT_LIMIT = 1 << 20
"""No structure of the kernel is larger than this many bytes."""

SYMBOLS = (
    "linux_banner",
    "modules",
    "swapper_pg_dir",
)
"""Symbols of vmlinux that every target must have."""

OPTIONAL_SYMBOLS = (
    "__init_begin",
    "__init_end",
    "__start_notes",
    "_end",
    "_stext",
    "btf_modules",
    "cur_cpu_spec",
    "empty_zero_page",
    "partition_tb",
    "pseries_partition_tb",
    "vmcoreinfo_data",
    "vmcoreinfo_size",
)
"""Symbols that are used if the kernel has them."""

STRUCTS: Mapping[str, tuple[str, ...]] = {
    "btf": ("data", "data_size", "name"),
    "btf_module": ("btf", "list"),
    "cpu_spec": ("mmu_features",),
    "idr": ("idr_rt.xa_head", "idr_base", "idr_next"),
    "interval_tree_node": ("__subtree_last", "last", "start"),
    "kvm": (
        "__memslots",
        "arch.hpt.order",
        "arch.hpt.rev",
        "arch.kvm_nested_guest_idr",
        "arch.l1_ptcr",
        "arch.lpid",
        "arch.max_nested_lpid",
        "arch.mmu_ready",
        "arch.nested_enable",
        "arch.nested_guests",
        "arch.pgtable",
        "arch.process_table",
        "arch.radix",
        "created_vcpus",
        "memslots",
        "mm",
        "mmu_lock",
        "nr_memslot_pages",
        "online_vcpus",
        "slots_lock.owner",
        "userspace_pid",
        "users_count",
        "vm_list",
    ),
    "kernel_symbol": ("name", "name_offset", "value", "value_offset"),
    "kvm_memory_slot": (
        "arch.rmap",
        "as_id",
        "base_gfn",
        "flags",
        "gfn_node",
        "hva_node",
        "id",
        "id_node",
        "npages",
        "userspace_addr",
    ),
    "kvm_memslots": (
        "gfn_tree.rb_node",
        "hva_tree.rb_root.rb_node",
        "id_hash",
        "id_to_index",
        "memslots",
        "node_idx",
        "used_slots",
    ),
    "kvm_nested_guest": (
        "l1_gr_to_hr",
        "l1_host",
        "l1_lpid",
        "process_table",
        "radix",
        "refcnt",
        "shadow_lpid",
        "shadow_pgtable",
    ),
    "list_head": ("next", "prev"),
    "mm_struct": ("pgd",),
    "mod_kallsyms": ("num_symtab", "strtab", "symtab"),
    "module": (
        "core_layout.base",
        "core_layout.size",
        "gpl_syms",
        "kallsyms",
        "list",
        "mem",
        "name",
        "num_gpl_syms",
        "num_syms",
        "refcnt",
        "syms",
    ),
    "module_memory": ("base", "size"),
    "qspinlock": ("val",),
    "rb_node": ("__rb_parent_color", "rb_left", "rb_right"),
    "revmap_entry": ("back", "forw"),
    "rmap_nested": ("list.next", "rmap"),
    "xa_node": ("array", "count", "marks", "nr_values", "offset", "parent", "shift", "slots"),
}
"""Structures and the members that are looked up in every kernel."""

AGGREGATES = frozenset(
    {
        "btf.name",
        "btf_module.list",
        "kvm.__memslots",
        "kvm.arch.kvm_nested_guest_idr",
        "kvm.arch.nested_guests",
        "kvm.memslots",
        "kvm.mmu_lock",
        "kvm.vm_list",
        "kvm_memory_slot.gfn_node",
        "kvm_memory_slot.hva_node",
        "kvm_memory_slot.id_node",
        "kvm_memslots.id_hash",
        "kvm_memslots.id_to_index",
        "kvm_memslots.memslots",
        "module.list",
        "module.mem",
        "module.name",
        "xa_node.marks",
        "xa_node.slots",
    }
)
"""Members that are arrays or structures; all others are integers."""

INTEGERS = (1, 2, 4, 8)
"""Sizes of integers in bytes."""

GATHERED = ("revmap_entry", "rmap_nested")
"""Structures that are read by the thousand, as 64-bit words."""
GATHERED_LIMIT = 1 << 8
WORD = 8

OPTIONAL_STRUCTS = frozenset(
    {
        "btf",
        "btf_module",
        "interval_tree_node",
        "kernel_symbol",
        "module_memory",
        "qspinlock",
        "revmap_entry",
    }
)
"""Structures that may be absent; for instance, a spinlock without a qspinlock is a plain word."""

STABLE: Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]] = {
    # Since 3.10 (2171364d1a92), up to this member.
    "cpu_spec": (104, {"mmu_features": (32, 4)}),
    # Since 4.20 (01959dfe771c).
    "xa_node": (
        576,
        {
            "array": (16, 8),
            "count": (2, 1),
            "marks": (552, 24),
            "nr_values": (3, 1),
            "offset": (1, 1),
            "parent": (8, 8),
            "shift": (0, 1),
            "slots": (40, 512),
        },
    ),
}
"""Layouts that have not changed for years, for type information that does not define them.

The compile unit whose DWARF is read only declares these structures.
"""


class Types(Protocol):
    """Type information of a kernel, from any source; a type is identified by a number."""

    def find_struct(self, name: str) -> int | None:
        """Return the type of a structure that is defined here."""

    def size_of(self, type_id: int) -> int:
        """Return the size in bytes of a type."""

    def member(self, type_id: int, path: str) -> Member | None:
        """Find a member by a dotted path."""


@dataclass(frozen=True)
class StructLayout:
    """Size of a structure and ``member -> (offset, size)``, all in bytes."""

    name: str
    size: int
    members: Mapping[str, tuple[int, int]]

    def __contains__(self, member: str) -> bool:
        return member in self.members

    def offset(self, member: str) -> int:
        """Return the byte offset of a member.

        Raises:
            TargetNotSupported: this kernel has no such member.
        """
        return self.place(member)[0]

    def place(self, member: str) -> tuple[int, int]:
        """Return offset and size of a member, in bytes.

        Raises:
            TargetNotSupported: this kernel has no such member.
        """
        try:
            return self.members[member]
        except KeyError:
            raise TargetNotSupported(
                f"struct {self.name} of this kernel has no member {member}, "
                "so it lays out KVM's state in a way this version does not know"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything the tool needs to know of a kernel.

    ``symbols`` are virtual addresses of vmlinux symbols.  ``vmcoreinfo`` is
    the kernel's own VMCOREINFO text as it is in memory, or empty.
    ``module_btf`` has the SHA-256 of the BTF of every module that ``structs``
    was taken from, and ``module_build_ids`` the GNU build ID, in hexadecimal,
    of every module whose debug file it was taken from.  ``anchors`` locates
    symbols of the module kvm that a kernel without CONFIG_KALLSYMS_ALL does
    not name in memory: an exported symbol of the module, and the distance in
    bytes from it.
    """

    release: str
    build_id: str
    byte_order: str
    page_size: int
    vmcoreinfo: str
    symbols: Mapping[str, int]
    structs: Mapping[str, StructLayout]
    module_btf: Mapping[str, str] = field(default_factory=dict)
    module_build_ids: Mapping[str, str] = field(default_factory=dict)
    anchors: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def page_shift(self) -> int:
        """log2 of the page size."""
        return self.page_size.bit_length() - 1

    def struct(self, name: str) -> StructLayout:
        """Return the layout of a structure.

        Raises:
            TargetNotSupported: this kernel has no such structure.
        """
        try:
            return self.structs[name]
        except KeyError:
            raise TargetNotSupported(
                f"the layout of this kernel was taken without struct {name}; take it again with "
                "'inspector layout'"
            ) from None

    def to_json(self) -> dict[str, Any]:
        """Return the documented JSON form."""
        return {
            "format": PROFILE_FORMAT,
            "release": self.release,
            "build_id": self.build_id,
            "byte_order": "little" if self.byte_order == "<" else "big",
            "page_size": self.page_size,
            "vmcoreinfo": self.vmcoreinfo,
            "symbols": {name: f"{value:#x}" for name, value in self.symbols.items()},
            "structs": {
                name: {
                    "size": layout.size,
                    "members": {key: list(place) for key, place in layout.members.items()},
                }
                for name, layout in self.structs.items()
            },
        } | {
            key: value
            for key, value in (
                ("module_btf", dict(self.module_btf)),
                ("module_build_ids", dict(self.module_build_ids)),
                ("anchors", {name: list(place) for name, place in self.anchors.items()}),
            )
            if value
        }

    @classmethod
    def from_json(cls, text: bytes | str) -> Profile:
        """Read the documented JSON form.

        Raises:
            BadData: the text does not have that form, or has another format.
        """
        try:
            raw = parsed_json(text)
            if raw["format"] != PROFILE_FORMAT:
                raise BadData(
                    f"the layout profile has format {raw['format']}, "
                    f"this version reads format {PROFILE_FORMAT}"
                )
            profile = cls(
                release=str(raw["release"]),
                build_id=str(raw["build_id"]),
                byte_order={"little": "<", "big": ">"}[raw["byte_order"]],
                page_size=int(raw["page_size"]),
                vmcoreinfo=str(raw["vmcoreinfo"]),
                symbols={str(key): int(value, 16) for key, value in raw["symbols"].items()},
                structs={
                    str(name): StructLayout(
                        str(name),
                        int(item["size"]),
                        {
                            str(key): (int(place[0]), int(place[1]))
                            for key, place in item["members"].items()
                        },
                    )
                    for name, item in raw["structs"].items()
                },
                module_btf={
                    str(name): str(digest) for name, digest in raw.get("module_btf", {}).items()
                },
                module_build_ids={
                    str(name): str(build_id)
                    for name, build_id in raw.get("module_build_ids", {}).items()
                },
                anchors={
                    str(name): (str(place[0]), int(place[1]))
                    for name, place in raw.get("anchors", {}).items()
                },
            )
        except DAMAGE as error:
            raise BadData(f"the layout profile is damaged: {error!r}") from error
        profile._check()
        return profile

    def _check(self) -> None:
        missing = [name for name in SYMBOLS if name not in self.symbols]
        missing += [
            f"struct {name}" for name in STRUCTS.keys() - OPTIONAL_STRUCTS - self.structs.keys()
        ]
        if missing:
            raise BadData(f"the layout profile is missing {', '.join(missing)}")
        wrong = [name for name, value in self.symbols.items() if not 0 <= value < (1 << 64)]
        wrong += [
            f"{name}.{member}"
            for name, layout in self.structs.items()
            for member, (offset, size) in layout.members.items()
            if not 0 <= offset <= offset + size <= layout.size <= STRUCT_LIMIT
            or not (size in INTEGERS or f"{name}.{member}" in AGGREGATES)
        ]
        wrong += [
            name
            for name, layout in self.structs.items()
            if not 0 < layout.size <= STRUCT_LIMIT
            or (name in GATHERED and (layout.size % WORD or layout.size > GATHERED_LIMIT))
        ]
        nodes = self.structs["rmap_nested"].members.items()
        wrong += [f"rmap_nested.{member}" for member, place in nodes if place[0] % WORD]
        if wrong:
            raise BadData(f"the layout profile has impossible values for {', '.join(wrong)}")
        if self.page_size not in PAGE_SIZES:
            raise TargetNotSupported(
                f"the kernel has pages of {self.page_size} bytes; only 4 KiB and 64 KiB are known"
            )


def layouts(blobs: Sequence[Types], names: Iterable[str] = STRUCTS) -> dict[str, StructLayout]:
    """Look structures up in type information, the most specific first.

    Members that a kernel does not have are left out; ``StructLayout.place``
    raises an error for them.

    Raises:
        TargetNotSupported: a structure is in none of the blobs.
    """
    found: dict[str, StructLayout] = {}
    for name in names:
        members = STRUCTS[name]
        for blob in blobs:
            type_id = blob.find_struct(name)
            if type_id is not None:
                break
        else:
            if name in OPTIONAL_STRUCTS:
                continue
            if name in STABLE:
                found[name] = StructLayout(name, *STABLE[name])
                continue
            raise TargetNotSupported(
                f"the kernel's type information has no struct {name}; "
                "give --modules with the kvm.ko and kvm-hv.ko of the running kernel"
            )
        places = {path: blob.member(type_id, path) for path in members}
        found[name] = StructLayout(
            name,
            blob.size_of(type_id),
            {path: (place.offset, place.size) for path, place in places.items() if place},
        )
    return found
