"""The containers of kernels up to 5.16, on captures of a real one.

``tests/test_fixtures.py`` compares the contents of the captures with what the exerciser made. Here
it is checked that they were read through the old containers, and what those guarantee.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector.kvm.containers import memslot_addresses, nested_guest_addresses
from inspector.structures.space import KernelSpace
from tests.fixtures import CAPTURES, description, opened

OLD = [path for path in CAPTURES if "-5.10-" in path.name]
MEMSLOTS, MANY = (
    next(path for path in OLD if name in path.name) for name in ("-memslots-", "-many-")
)


def ids(path: Path) -> str:
    return path.name.removesuffix(".core.zst")


@pytest.mark.parametrize("path", OLD, ids=ids)
def test_its_containers_are_arrays(path: Path) -> None:
    structs = opened(path).profile.structs
    assert {"memslots", "used_slots"} <= structs["kvm_memslots"].members.keys()
    assert "gfn_tree.rb_node" not in structs["kvm_memslots"]
    assert "arch.nested_guests" in structs["kvm"]
    assert "arch.kvm_nested_guest_idr" not in structs["kvm"]


def test_memslots_stand_in_a_row_the_highest_first() -> None:
    capture = opened(MEMSLOTS)
    kernel = KernelSpace(capture.memory, capture.profile)
    (vm,) = capture.snapshot.vms
    addresses = list(memslot_addresses(kernel, vm.address))
    size = capture.profile.struct("kvm_memory_slot").size
    assert len(addresses) == len(description(MEMSLOTS)["expected"]["vms"][0]["memslots"]) > 2
    assert addresses == list(range(addresses[0], addresses[0] + len(addresses) * size, size))
    first = [kernel.field("kvm_memory_slot", slot, "base_gfn") for slot in addresses]
    assert first == sorted(first, reverse=True)


def test_nested_guests_are_found_up_to_the_last() -> None:
    capture = opened(MANY)
    kernel = KernelSpace(capture.memory, capture.profile)
    (vm,) = capture.snapshot.vms
    guests = dict(nested_guest_addresses(kernel, vm.address))
    assert max(guests) == kernel.field("kvm", vm.address, "arch.max_nested_lpid") == 4095
    assert guests.keys() == {nested.l1_lpid for nested in vm.nested}
    assert len(guests) > 5
