"""KVM's list of VMs found by its form among the other lists of the module."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fixtures.synthetic import ALL_LAYOUTS, LAYOUTS, FakeVm, Image, MemslotRange, build
from inspector.checks.verdict import Verdict, judge
from inspector.errors import BadData, InspectorError, TargetNotSupported
from inspector.kvm.by_form import vms_by_form
from inspector.kvm.collect import collect
from inspector.memory.segments import SegmentedMemory
from inspector.model.vm import Table, VmState
from inspector.structures.space import KernelSpace
from tests.memories import patch

PAGES = 16


def vm(lpid: int, *, radix: bool = True, page_shift: int = 12) -> FakeVm:
    state = VmState(page_shift, Table({}), {}, {}, {})
    return FakeVm(state, (MemslotRange(0, PAGES, 0x7000_0000_0000),), lpid=lpid, radix=radix)


def image_of(*vms: FakeVm, order: str = "<", age: str = "new", page_size: int = 4096) -> Image:
    return build(vms, page_size, order, layouts=ALL_LAYOUTS[age])


TWO = image_of(vm(1), vm(2))
NONE = image_of()


def found_in(image: Image, memory: SegmentedMemory | None = None) -> list[int]:
    return vms_by_form(KernelSpace(memory or image.memory, image.profile))


def changed(image: Image, *changes: tuple[int, bytes]) -> SegmentedMemory:
    kernel = KernelSpace(image.memory, image.profile)
    memory = image.memory
    for where, data in changes:
        memory = patch(memory, kernel.physical(where), data)
    return memory


def link(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.parametrize("age", ALL_LAYOUTS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_vms_are_found(order: str, age: str) -> None:
    image = image_of(vm(1), vm(7, radix=False), vm(4095), order=order, age=age)
    assert found_in(image) == list(image.kvm)


def test_64k_pages() -> None:
    image = image_of(vm(1, page_shift=16), page_size=1 << 16)
    assert found_in(image) == list(image.kvm)


def test_lists_that_are_empty_are_no_vms() -> None:
    assert found_in(NONE) == []


def test_no_list_and_a_module_in_use() -> None:
    """The list is empty while kvm_hv is in use, so "no VMs" is not accepted."""
    head = TWO.vm_list
    memory = changed(TWO, (head, link(head) * 2))
    with pytest.raises(BadData, match=r"kvm_hv has 2 users .*so there may be VMs"):
        found_in(TWO, memory)


def test_what_is_not_known_is_a_gap() -> None:
    head = TWO.vm_list
    memory = changed(TWO, (head, link(head) * 2))
    snapshot = collect(KernelSpace(memory, TWO.profile), None)
    assert snapshot.vms == ()
    assert "may be VMs" in snapshot.gaps[0].text
    assert judge(snapshot).verdict is Verdict.INCONCLUSIVE


MEMBER = {name: place[0] for name, place in LAYOUTS["kvm"][1].items()}


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("memslots", link(0xC000_0000_0000_1000)),
        ("mm", link(0xC000_0000_0000_1000)),
        ("mm", link(0)),
        ("arch.lpid", b"\xff\xff\xff\xff"),
        ("arch.radix", b"\x17"),
        ("arch.pgtable", link(0xC008_0000_0000_0000)),
        ("vm_list", link(0xC000_0000_0000_1000)),
        ("vm_list", link(0)),
    ],
)
def test_a_damaged_vm_is_no_silence(which: int, member: str, value: bytes) -> None:
    memory = changed(TWO, (TWO.kvm[which] + MEMBER[member], value))
    with pytest.raises(InspectorError):
        found_in(TWO, memory)


def test_a_head_that_its_list_does_not_know_is_passed_over() -> None:
    head = TWO.vm_list
    first, last = (vm + MEMBER["vm_list"] for vm in TWO.kvm)
    dangling = changed(TWO, (head + 32, link(first) + link(last)))
    assert found_in(TWO, dangling) == list(TWO.kvm)


def test_a_list_of_something_else_is_passed_over() -> None:
    """Another list of the module is sound, and holds no VMs."""
    head, other = TWO.vm_list + 32, TWO.kvm[0] + 900
    memory = changed(TWO, (head, link(other) * 2), (other, link(head) * 2))
    assert found_in(TWO, memory) == list(TWO.kvm)


def test_two_lists_of_vms_are_named() -> None:
    first, second = TWO.kvm
    head, link_at = TWO.vm_list, MEMBER["vm_list"]
    other = head + 32
    memory = changed(
        TWO,
        (head, link(first + link_at) * 2),
        (first + link_at, link(head) * 2),
        (other, link(second + link_at) * 2),
        (second + link_at, link(other) * 2),
    )
    with pytest.raises(BadData, match=rf"2 lists .* at {head:#x} and {other:#x}"):
        found_in(TWO, memory)


def test_kvm_is_not_loaded() -> None:
    with pytest.raises(TargetNotSupported, match="KVM-HV is not loaded"):
        found_in(build([], kvm_loaded=False))


def test_the_modules_memory_must_be_known() -> None:
    structs = dict(NONE.profile.structs)
    module = structs["module"]
    members = {k: v for k, v in module.members.items() if not k.startswith("core_layout")}
    structs["module"] = replace(module, members=members)
    profile = replace(NONE.profile, structs=structs)
    with pytest.raises(TargetNotSupported, match="struct module of this kernel has no member mem"):
        vms_by_form(KernelSpace(NONE.memory, profile))
