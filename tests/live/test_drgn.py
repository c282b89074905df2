"""drgn, with the kernel's debug files, finds in a vmcore what the inspector finds without them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fixtures.lab import dumps, packages
from fixtures.lab.machine import Machine
from inspector.kvm.snapshot import Nested, Vm
from inspector.session import Options, acquire
from inspector.structures.radix import LeafTable

if TYPE_CHECKING:
    from tests.live.drgnwalk import DrgnNested, DrgnVm, Leaf

VARIABLE = "INSPECTOR_TEST_DRGN"
DEBUG_FILES = ("vmlinux", "kvm", "kvm-hv")

pytestmark = [
    pytest.mark.skipif(
        os.environ.get(VARIABLE) != "1",
        reason=f"set {VARIABLE}=1 to compare with drgn, which has to be installed; "
        "downloads the kernel's debug package (900 MB) once",
    ),
    pytest.mark.usefixtures("boot"),
]


@pytest.mark.parametrize("scenario", ["mixed", "random", "memslots", "two-vms", "thp"])
def test_same_as_drgn(scenario: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.live.drgnwalk import open_core, walk

    core = tmp_path / "vmcore"
    with Machine.start(scenario=scenario, memory="1G", name=f"drgn-{scenario}") as machine:
        dumps.dump(machine, core, "vmcore")
        files = packages.debug_files(machine.state.kernel, DEBUG_FILES)
        expected = len(machine.expectation.slots)
    # Making the dump left a description of the kernel; the inspector is to make its own.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        theirs = walk(open_core(core, files.values()))
        ours = acquire(str(core), Options()).snapshot.vms
    finally:
        core.unlink()
    assert [vm.address for vm in ours] == [vm.address for vm in theirs]
    assert sum(len(vm.slots) for vm in theirs) == expected > 0
    for one, other in zip(ours, theirs, strict=True):
        _assert_same(one, other)


def _assert_same(ours: Vm, theirs: DrgnVm) -> None:
    assert ours.gaps == ()
    assert ours.rmaps.problems == ()
    assert ours.lpid == theirs.lpid
    assert _memslots(ours) == theirs.memslots
    assert _slots(ours) == theirs.slots
    assert _leaves(ours.host) == theirs.host
    assert [nested.lpid for nested in ours.nested] == list(theirs.nested)
    for nested in ours.nested:
        _assert_same_nested(nested, theirs.nested[nested.lpid])


def _assert_same_nested(ours: Nested, theirs: DrgnNested) -> None:
    assert ours.address == theirs.address
    assert {name: getattr(ours, name) for name in theirs.fields} == theirs.fields
    assert _leaves(ours.shadow) == theirs.shadow
    assert (None if ours.l1 is None else _leaves(ours.l1)) == theirs.l1


def _memslots(vm: Vm) -> dict[int, dict[str, int]]:
    fields = ("id", "base_gfn", "npages", "flags", "userspace_addr", "rmap")
    return {slot.address: {name: getattr(slot, name) for name in fields} for slot in vm.memslots}


def _slots(vm: Vm) -> dict[int, list[tuple[int, int]]]:
    return {
        slot.gfn: list(zip(slot.nodes.tolist(), slot.words.tolist(), strict=True))
        for slot in vm.rmaps
    }


def _leaves(table: LeafTable) -> list[Leaf]:
    assert table.problems == ()
    columns = (table.address, table.entry, table.shift, table.where)
    return list(zip(*(column.tolist() for column in columns), strict=True))
