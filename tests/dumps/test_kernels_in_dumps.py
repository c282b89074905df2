"""A real machine in a kdump-compressed dump: present pages are read, missing ones reported."""

from __future__ import annotations

import functools
from collections.abc import Set
from pathlib import Path

import numpy as np
import pytest

from inspector.checks.verdict import Verdict, judge
from inspector.dumps.formats import open_dump
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Gap, Part, Snapshot, Vm
from inspector.memory.numbers import U64
from inspector.structures.space import GuestSpace, KernelSpace
from tests.dumps.kdumpwriter import KdumpSpec, kdump
from tests.fixtures import SMALL, opened, pieces
from tests.memories import pieces_of

PAGE = 4096


@functools.cache
def pages_of_the_capture() -> dict[int, bytes]:
    """Return the capture's memory as whole pages; bytes that it does not hold are never read."""
    found: dict[int, bytearray] = {}
    for start, data in pieces_of(pieces(SMALL)[0]):
        at = 0
        while at < len(data):
            number, offset = divmod(start + at, PAGE)
            part = data[at : at + PAGE - offset]
            found.setdefault(number, bytearray(PAGE))[offset : offset + len(part)] = part
            at += len(part)
    return {number: bytes(page) for number, page in found.items()}


@functools.cache
def pages_that_are_mapped() -> set[int]:
    """Return the numbers of pages that L0, the shadow tables and the host's own entry lead to."""
    snapshot = opened(SMALL).snapshot
    (vm,) = snapshot.vms
    own = snapshot.host.first_entry
    assert own is not None
    assert own.second is not None
    return {own.second % (1 << 60) // PAGE} | {
        int(frame) // PAGE + page
        for table in (vm.host, *(nested.shadow for nested in vm.nested))
        for frame, shift in zip(table.frame, table.shift, strict=True)
        for page in range((1 << int(shift)) // PAGE)
    }


def snapshot_of(path: Path, left_out: Set[int], compression: str, order: str) -> Snapshot:
    pages = pages_of_the_capture()
    kept = {number: page for number, page in pages.items() if number not in left_out}
    # All pages that are mapped are memory of the machine, even those that the capture left out.
    excluded = (left_out | pages_that_are_mapped()) - set(kept)
    spec = KdumpSpec(kept, excluded, order=order, compression=compression)
    path.write_bytes(kdump(spec))
    kernel = KernelSpace(open_dump(path).memory, pieces(SMALL)[1])
    return collect(kernel, vm_list(kernel))


def tables_of_l1(vm: Vm) -> set[int]:
    """Return the numbers of the host pages that L1's own tables lie in."""
    memory, profile = pieces(SMALL)
    kernel = KernelSpace(memory, profile)
    process = kernel.field("kvm", vm.address, "mm")
    guest = GuestSpace(kernel, kernel.field("mm_struct", process, "pgd"), vm.memslots)
    where: list[U64] = [nested.l1.where for nested in vm.nested if nested.l1 is not None]
    physical, known = guest.translate(np.concatenate(where))
    assert known.all()
    return {int(number) for number in physical // np.uint64(PAGE)}


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "order"), [("zstd", "<"), ("lzo", ">")])
def test_the_same_as_in_the_capture(tmp_path: Path, compression: str, order: str) -> None:
    expected = opened(SMALL).snapshot
    found = snapshot_of(tmp_path / "dump", set(), compression, order)
    for one, other in zip(found.vms, expected.vms, strict=True):
        assert np.array_equal(one.rmaps.word, other.rmaps.word)
        assert np.array_equal(one.rmaps.gfn, other.rmaps.gfn)
        assert np.array_equal(one.host.entry, other.host.entry)
        assert one.gaps == other.gaps
    assert judge(found).verdict is Verdict.CONSISTENT


@pytest.mark.slow
def test_without_the_memory_of_the_guest(tmp_path: Path) -> None:
    (vm,) = opened(SMALL).snapshot.vms
    found = snapshot_of(tmp_path / "dump", tables_of_l1(vm), "zlib", "<")
    (judged,) = judge(found).vms
    assert judged.verdict is Verdict.CONSISTENT
    assert np.array_equal(judged.vm.rmaps.word, vm.rmaps.word)
    assert judged.counts.pending == 0
    lost: list[Gap] = [gap for gap in judged.vm.gaps if gap not in vm.gaps]
    assert lost
    assert {item.invariant.id for item in judged.not_judged if item.gap in lost} == {
        "shadow-leaf-frame",
        "shadow-leaf-l1",
        "shadow-leaf-rc",
    }
    for gap in lost:
        assert gap.part is Part.L1
        assert gap.text.startswith("L1's table")
        assert gap.text.endswith("is not readable: excluded by makedumpfile's dump level 31")


@pytest.mark.slow
def test_without_a_page_of_the_kernel(tmp_path: Path) -> None:
    (vm,) = opened(SMALL).snapshot.vms
    shadow = {int(nested.shadow.where[0]) // PAGE for nested in vm.nested if len(nested.shadow)}
    (judged,) = judge(snapshot_of(tmp_path / "dump", shadow, "zlib", "<")).vms
    assert judged.verdict is Verdict.INCONCLUSIVE
    lost = [item for item in judged.not_judged if item.gap.part is Part.SHADOW]
    assert {item.invariant.id for item in lost} >= {"shadow-leaf-covered", "table-form"}
    assert all(item.at_all for item in lost)
    assert all("excluded by makedumpfile's dump level 31" in item.gap.text for item in lost)
