"""Every shipped capture holds what its maker believed it had made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from inspector.checks.verdict import Verdict, judge
from inspector.kvm.snapshot import Part, Vm
from inspector.memory.numbers import integer
from inspector.structures.space import KernelSpace
from tests.fixtures import CAPTURES, DIRECTORY, description, opened

EXPECTED = [path for path in CAPTURES if "expected" in description(path)]
VIOLATIONS = {"powernv9-zero-word": {"shadow-leaf-covered"}}
"""Captures of a bug of the kernel itself: an entry of LPID 0, page 0 hides those after it."""


def ids(path: Path) -> str:
    return path.name.removesuffix(".core.zst")


def by_memory(path: Path) -> list[tuple[Vm, dict[str, Any]]]:
    """Pair the VMs that were found with the expected ones, by the addresses of their memslots."""
    found = {
        frozenset(slot.userspace_addr for slot in vm.memslots): vm
        for vm in opened(path).snapshot.vms
    }
    wanted = {
        frozenset(slot["hva"] for slot in vm["memslots"]): vm
        for vm in description(path)["expected"]["vms"]
    }
    assert found.keys() == wanted.keys()
    return [(found[key], wanted[key]) for key in wanted]


def test_there_are_captures() -> None:
    assert EXPECTED


@pytest.mark.parametrize("path", EXPECTED, ids=ids)
def test_what_is_found_is_what_was_made(path: Path) -> None:
    for vm, wanted in by_memory(path):
        assert {gap.part for gap in vm.gaps} <= {Part.PARTITION}
        assert not vm.locked
        assert vm.radix is wanted["radix"]
        assert {(slot.base_gfn, slot.npages, slot.userspace_addr) for slot in vm.memslots} == {
            (slot["base_gfn"], slot["npages"], slot["hva"]) for slot in wanted["memslots"]
        }
        assert vm.rmaps.problems == ()
        assert {f"{slot.gfn:#x}": [f"{word:#x}" for word in slot.words] for slot in vm.rmaps} == (
            wanted["slots"]
        )
        leaves = [
            f"{nested.lpid}:{address:#x}"
            for nested in vm.nested
            for address in nested.shadow.address.tolist()
        ]
        assert Counter(leaves) == Counter(wanted["leaves"] + wanted["orphans"])


@pytest.mark.parametrize(
    ("name", "host", "shadow"),
    [
        ("powernv9-l1-sizes", {12}, {12}),
        ("powernv9-l1-sizes-6.12-64k", {16}, {16}),
        ("powernv9-hugetlb", {12, 21, 30}, {12, 21, 30}),
        ("powernv9-hugetlb-6.12-64k", {16, 21, 30}, {16, 21, 30}),
    ],
)
def test_pages_of_all_sizes_are_there(name: str, host: set[int], shadow: set[int]) -> None:
    (vm,) = opened(DIRECTORY / f"{name}.core.zst").snapshot.vms
    assert set(vm.host.shift.tolist()) == host
    assert {shift for nested in vm.nested for shift in nested.shadow.shift.tolist()} == shadow
    wanted = [nested.l1 for nested in vm.nested if nested.l1 is not None]
    assert {shift for table in wanted for shift in table.shift.tolist()} == {12, 16, 21, 30}


@pytest.mark.parametrize("path", CAPTURES, ids=ids)
def test_every_word_stands_where_it_is_said_to(path: Path) -> None:
    capture = opened(path)
    kernel = KernelSpace(capture.memory, capture.profile)
    for vm in capture.snapshot.vms:
        actual, present = kernel.words(vm.rmaps.place)
        assert present.all()
        assert actual.tolist() == vm.rmaps.word.tolist()


@pytest.mark.parametrize("path", CAPTURES, ids=ids)
def test_a_proof_can_be_checked_by_hand(path: Path) -> None:
    capture = opened(path)
    kernel = KernelSpace(capture.memory, capture.profile)
    for finding in judge(capture.snapshot).findings:
        for item in finding.evidence:
            if item.space == "kernel" and item.value is not None:
                assert kernel.unsigned(item.address, item.size) == item.value
            elif item.space == "physical" and item.value is not None:
                assert integer(capture.memory.read(item.address, 8), ">") == item.value


@pytest.mark.parametrize("path", CAPTURES, ids=ids)
def test_the_verdict(path: Path) -> None:
    snapshot = opened(path).snapshot
    judgement = judge(snapshot)
    invariants = {finding.invariant for finding in judgement.findings}
    orphans = any(vm["orphans"] for vm in description(path).get("expected", {}).get("vms", ()))
    if orphans:
        assert judgement.verdict is Verdict.VIOLATIONS
        assert "shadow-leaf-mapped" in invariants
        return
    assert invariants == VIOLATIONS.get(ids(path), set())
    assert (judgement.verdict is Verdict.CONSISTENT) == (not invariants)


@pytest.mark.parametrize("path", CAPTURES, ids=ids)
def test_the_origin_is_kept_in_the_capture_too(path: Path) -> None:
    acquired = opened(path)
    origin = description(path)["origin"]
    facts = acquired.origin.facts or {}
    assert {key: facts.get(key) for key in origin} == {
        key: str(value) for key, value in origin.items()
    }
    assert acquired.snapshot.release == origin["release"]
