"""Exported symbols of a loaded module, with pointers and with offsets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.synthetic import LAYOUTS, Kernel, build
from inspector.errors import BadData
from inspector.image.profile import StructLayout
from inspector.structures.modules import exported_symbol
from inspector.structures.space import KernelSpace

MODULE = {"syms": (320, 8), "num_syms": (328, 4), "gpl_syms": (336, 8), "num_gpl_syms": (344, 4)}
FORMS = {
    "pointers": StructLayout("kernel_symbol", 24, {"value": (0, 8), "name": (8, 8)}),
    "offsets": StructLayout("kernel_symbol", 12, {"value_offset": (0, 4), "name_offset": (4, 4)}),
}
EXPORTS = ("kvm_get_kvm", "halt_poll_ns_grow", "halt_poll_ns")


def _opened(form: str, byte_order: str, count: int | None = None) -> tuple[KernelSpace, int, int]:
    layout = FORMS[form]
    kernel = Kernel(4096, byte_order)
    before, table, after = (kernel.kmalloc(256) for _ in range(3))
    for i, name in enumerate(EXPORTS):
        # Names lie before the table and values after it, so offsets have both signs.
        text, value, entry = before + 32 * i, after + 16 * i, table + layout.size * i
        kernel.write(text, name.encode() + b"\0")
        for member, target in (("name", text), ("value", value)):
            if form == "pointers":
                kernel.store(entry + layout.offset(member), target)
            else:
                field = entry + layout.offset(f"{member}_offset")
                kernel.store(field, (target - field) & 0xFFFF_FFFF, 4)
    module = kernel.kmalloc(LAYOUTS["module"][0])
    kernel.store(module + MODULE["gpl_syms"][0], table)
    kernel.store(module + MODULE["num_gpl_syms"][0], len(EXPORTS) if count is None else count, 4)
    base = build([], byte_order=byte_order).profile
    module_layout = base.structs["module"]
    members = {**module_layout.members, **MODULE}
    profile = replace(
        base,
        structs={
            **base.structs,
            "kernel_symbol": layout,
            "module": replace(module_layout, members=members),
        },
    )
    return KernelSpace(kernel.memory(), profile), module, after


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("form", FORMS)
def test_an_exported_symbol_is_found_by_its_whole_name(form: str, byte_order: str) -> None:
    kernel, module, values = _opened(form, byte_order)
    found = [exported_symbol(kernel, module, name) for name in EXPORTS]
    assert found == [values, values + 16, values + 32]
    assert exported_symbol(kernel, module, "halt_poll") is None


def test_an_absurd_number_of_exports_is_refused() -> None:
    kernel, module, _ = _opened("pointers", "<", 1 << 30)
    with pytest.raises(BadData, match="exports"):
        exported_symbol(kernel, module, "halt_poll_ns")
