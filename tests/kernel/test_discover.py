"""The host's kernel found in memory, and distinguished from the kernels of its guests."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.synthetic import Image, build
from inspector.errors import BadData, InspectorError, TargetNotSupported
from inspector.kernel.discover import find_kernel
from inspector.kvm.collect import collect, vm_list
from inspector.memory.segments import SegmentedMemory
from inspector.structures.space import KernelSpace
from tests.kallsymswriter import Form
from tests.memories import of_segments, patch
from tests.profiles import examples
from tests.selfdescribed import BUILD_ID, furnish

BASE = Form()
PLACE = Form("place", alignment=4)
MIB = 1 << 20
GUEST = 20 * MIB
"""Where a guest's copy lies: looked at before the chunks the host's own lies in."""


def host(form: Form = BASE, page_size: int = 4096, order: str = "<", **more: object) -> Image:
    own = Form(form.values, form.values_first, form.order_bytes, form.alignment, order)
    return build([], page_size, order, furnish=furnish(own, **more))  # type: ignore[arg-type]


def content(image: Image) -> bytes:
    return image.memory.read(0, int(image.memory.sizes[0]) // 4096 * 4096)


def with_guest(image: Image, guest: Image, at: int = GUEST) -> SegmentedMemory:
    return of_segments([(0, content(image)), (at, content(guest))])


@pytest.mark.slow
@pytest.mark.parametrize("size", [b"0   ", b"8192", b"-4096", b"9" * 8])
def test_pages_of_a_size_that_cannot_be(size: bytes) -> None:
    image = host()
    data = content(image)
    at = data.index(b"PAGESIZE=4096\n") + len(b"PAGESIZE=")
    changed = patch(image.memory, at, size)
    with pytest.raises(TargetNotSupported, match=r"has pages of|has no usable"):
        find_kernel(changed)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("page_size", [1 << 12, 1 << 16])
@pytest.mark.parametrize("form", [BASE, PLACE, Form("absolute", True, 0), Form("base", True, 3)])
def test_no_file_is_needed(form: Form, page_size: int, order: str) -> None:
    image = host(form, page_size, order)
    found = find_kernel(image.memory)
    assert (found.release, found.place, found.rejected) == ("6.12.0-fake", 0, ())
    profile = found.profile
    assert profile is not None
    assert (profile.build_id, profile.page_size) == (BUILD_ID.hex(), page_size)
    assert profile.vmcoreinfo == image.profile.vmcoreinfo
    assert (
        image.profile.symbols.items()
        >= {
            name: profile.symbols[name] for name in ("modules", "swapper_pg_dir", "cur_cpu_spec")
        }.items()
    )
    for name, layout in image.profile.structs.items():
        wanted = profile.structs[name].members
        assert {member: layout.members[member] for member in wanted} == wanted
    kernel = KernelSpace(image.memory, profile)
    assert vm_list(kernel) == image.vm_list
    assert collect(kernel, image.vm_list).vms == ()


@pytest.mark.slow
@pytest.mark.parametrize("form", [BASE, PLACE], ids=["base", "place"])
@pytest.mark.parametrize("same", [True, False], ids=["same build", "another build"])
def test_the_copy_in_a_guest_is_not_the_host(form: Form, same: bool) -> None:
    image = host(form)
    guest = image if same else host(form, build_id=bytes(20), leave_out=("slab_caches",))
    found = find_kernel(with_guest(image, guest))
    assert found.place == 0
    assert found.profile is not None
    assert found.profile.build_id == BUILD_ID.hex()
    (reason,) = found.rejected
    assert reason.startswith("kernel symbols at physical 0x14")
    if form is BASE:
        assert reason.endswith("so this is a copy in the memory of a guest")
    else:
        # Its symbols are relative to where it lies, but its pointers and page table are not.
        assert "leads back to" in reason if same else "where it was found" in reason


@pytest.mark.slow
@pytest.mark.parametrize("form", [BASE, PLACE], ids=["base", "place"])
def test_a_guest_alone_is_refused(form: Form) -> None:
    memory = with_guest(build([]), host(form))
    with pytest.raises(TargetNotSupported, match="host kernel was not found in the first 64 MiB"):
        find_kernel(memory)


@pytest.mark.slow
@pytest.mark.parametrize("form", [BASE, PLACE], ids=["base", "place"])
def test_a_kernel_loaded_elsewhere(form: Form) -> None:
    base = 192 * MIB
    image = build([], base=base, furnish=furnish(form, base=base))
    found = find_kernel(image.memory)
    assert found.place == base
    assert found.profile is not None
    assert vm_list(KernelSpace(image.memory, found.profile)) == image.vm_list


def test_vmcoreinfo_leads_straight_there() -> None:
    image = host()
    text = "SYMBOL(kallsyms_token_table)=c000000000000000\n"
    assert find_kernel(with_guest(image, image), text).rejected == ()
    assert find_kernel(image.memory, "SYMBOL(kallsyms_token_table)=nonsense\n").place == 0


@pytest.mark.slow
def test_no_kernel_at_all() -> None:
    for memory in (of_segments([]), of_segments([(0, bytes(1 << 16))])):
        with pytest.raises(TargetNotSupported, match="no symbol table of a kernel is there"):
            find_kernel(memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "missing"),
    [
        ({"types": False}, "it carries no BTF"),
        ({"module_types": False}, "no BTF of the modules kvm_hv, kvm"),
        ({"leave_out": ("linux_banner",)}, "no data symbols"),
    ],
)
def test_what_a_kernel_lacks_is_said(more: dict[str, object], missing: str) -> None:
    found = find_kernel(host(**more).memory)  # type: ignore[arg-type]
    assert found.release == "6.12.0-fake"
    assert found.profile is None
    assert missing in found.missing


def test_a_kernel_without_vmcoreinfo() -> None:
    for page_size in (1 << 12, 1 << 16):
        image = host(BASE, page_size, leave_out=("vmcoreinfo_data", "vmcoreinfo_size"))
        profile = find_kernel(image.memory).profile
        assert profile is not None
        assert (profile.page_size, profile.vmcoreinfo) == (page_size, "")


def test_kvm_is_not_loaded() -> None:
    image = build([], kvm_loaded=False, furnish=furnish(BASE, module_types=False))
    with pytest.raises(TargetNotSupported, match="KVM-HV is not loaded"):
        find_kernel(image.memory)


def test_the_hash_mmu() -> None:
    image = host()
    cpu = image.profile.symbols["cur_cpu_spec"] & ((1 << 60) - 1)
    spec = int.from_bytes(image.memory.read(cpu, 8), "little") & ((1 << 60) - 1)
    with pytest.raises(TargetNotSupported, match="hash MMU"):
        find_kernel(patch(image.memory, spec + 24, bytes(4)))


@pytest.mark.slow
@pytest.mark.parametrize("symbol", ["linux_banner", "modules", "swapper_pg_dir", "vmcoreinfo_size"])
def test_damage_is_named(symbol: str) -> None:
    image = host()
    place = image.profile.symbols[symbol] & ((1 << 60) - 1)
    with pytest.raises(
        TargetNotSupported, match=r"kernel symbols at physical .*: .*(its|the kernel's) "
    ):
        find_kernel(patch(image.memory, place, bytes(64 if symbol != "swapper_pg_dir" else 65536)))


def test_damaged_types_are_no_traceback() -> None:
    image = host()
    at = content(image).index((0xEB9F).to_bytes(2, "little") + b"\1\0")
    with pytest.raises((BadData, TargetNotSupported)):
        find_kernel(patch(image.memory, at + 8, b"\xff" * 16))


WHOLE = host()
TYPES = content(WHOLE).index((0xEB9F).to_bytes(2, "little") + b"\1\0")


@pytest.mark.slow
@settings(max_examples=examples(20))
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(0, len(content(WHOLE)) - 8), st.integers(TYPES, TYPES + (1 << 13))
            ),
            st.binary(min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_damage_anywhere_is_an_error_of_ours_or_harmless(
    changes: list[tuple[int, bytes]],
) -> None:
    memory = WHOLE.memory
    for place, data in changes:
        memory = patch(memory, place, data)
    with contextlib.suppress(InspectorError):
        find_kernel(memory)
