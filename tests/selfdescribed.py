"""The description that a kernel has of itself in memory: symbols, types, build ID.

``furnish`` adds one to an invented kernel (``fixtures/synthetic``).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from fixtures.synthetic import BUILD_IDS, LINEAR, Kernel
from tests.btfwriter import BtfWriter, MemberOf
from tests.kallsymswriter import Form, write

__all__ = ["BUILD_ID", "furnish"]

BUILD_ID = BUILD_IDS["vmlinux"]
FILLERS = 700
OF_MODULES = {
    "kvm_hv": ("kvm_nested_guest", "rmap_nested"),
    "kvm": ("kvm", "kvm_memory_slot", "kvm_memslots"),
}
OWN = {
    "btf": (96, {"data": (0, 8), "data_size": (12, 4), "name": (24, 56)}),
    "btf_module": (40, {"list": (0, 16), "btf": (24, 8)}),
}
NOP = 0x6000_0000


def furnish(
    form: Form,
    *,
    base: int = 0,
    build_id: bytes = BUILD_ID,
    types: bool = True,
    module_types: bool = True,
    leave_out: tuple[str, ...] = (),
) -> Callable[[Kernel, dict[str, int]], None]:
    """Return a function that adds such a description, in one form, to a kernel."""

    def add(kernel: Kernel, symbols: dict[str, int]) -> None:
        order = kernel.byte_order
        if base:
            kernel.write(LINEAR | base, struct.pack(order + "8I", *[NOP] * 8))
        every: dict[str, tuple[int, Mapping[str, tuple[int, int]]]] = {**kernel.layouts, **OWN}
        of_modules = {name for names in OF_MODULES.values() for name in names}
        vmlinux = BtfWriter(order)
        _types(vmlinux, {name: every[name] for name in every.keys() - of_modules})
        if types:
            place = _stored(kernel, vmlinux.data())
            symbols["__start_BTF"], symbols["__stop_BTF"] = place, place + len(vmlinux.data())
        symbols["btf_modules"] = kernel.kmalloc(16)
        links = []
        for module, names in OF_MODULES.items() if module_types else ():
            blob = vmlinux.split()
            _types(blob, {name: every[name] for name in names})
            links.append(_module(kernel, module, blob.data()))
        kernel.ring(symbols["btf_modules"], links)
        note = struct.pack(order + "III", 4, len(build_id), 3) + b"GNU\0" + build_id
        symbols["__start_notes"] = _stored(kernel, note + bytes(512))
        symbols["slab_caches"] = kernel.kmalloc(16)
        kernel.ring(symbols["slab_caches"], [kernel.kmalloc(16)])
        named = {name: at for name, at in symbols.items() if name not in leave_out}
        _kallsyms(kernel, named, form, base)

    return add


def _stored(kernel: Kernel, data: bytes) -> int:
    where = kernel.kmalloc(len(data))
    kernel.write(where, data)
    return where


def _module(kernel: Kernel, name: str, data: bytes) -> int:
    size, members = OWN["btf"]
    btf = kernel.kmalloc(size)
    kernel.store(btf + members["data"][0], _stored(kernel, data))
    kernel.store(btf + members["data_size"][0], len(data), 4)
    kernel.write(btf + members["name"][0], name.encode() + b"\0")
    entry = kernel.kmalloc(OWN["btf_module"][0])
    kernel.store(entry + OWN["btf_module"][1]["btf"][0], btf)
    return entry


def _kallsyms(kernel: Kernel, symbols: Mapping[str, int], form: Form, base: int) -> None:
    first = LINEAR | base
    fillers = {f"do_page_filler_{i}": first + 16 * i for i in range(1, FILLERS)}
    last = {"_text": first, "_stext": first, "_end": first + (1 << 24)}
    rows = sorted({**symbols, **fillers, **last}.items(), key=lambda row: row[1])
    length = len(write(rows, form, 0)) + 4096
    place = kernel.take(length, 4096)
    kernel.write(LINEAR | place, write(rows, form, place))


def _types(
    writer: BtfWriter, layouts: Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]]
) -> None:
    sizes: dict[int, int] = {}
    byte = writer.integer("u8", 1)

    def kind(size: int) -> int:
        if size not in sizes:
            small = size in (1, 2, 4, 8)
            sizes[size] = (
                writer.integer(f"u{size * 8}", size) if small else writer.array(byte, size)
            )
        return sizes[size]

    def structure(name: str, size: int, tree: Mapping[str, Any]) -> int:
        members: list[MemberOf] = []
        for member, place in tree.items():
            if isinstance(place, dict):
                # The members keep the offsets that they have in the outer structure.
                members.append((member, structure(f"{name}_{member}", size, place), 0))
            else:
                members.append((member, kind(place[1]), place[0] * 8))
        return writer.struct(name, size, members)

    for name, (size, members) in sorted(layouts.items()):
        tree: dict[str, Any] = {}
        for path, place in members.items():
            *outer, member = path.split(".")
            level = tree
            for part in outer:
                level = level.setdefault(part, {})
            level[member] = place
        structure(name, size, tree)
