"""Captures with holes, and captures with arbitrary words in arbitrary places."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from fixtures.mutations.mutant import Mutant
from inspector.checks.verdict import Verdict, judge
from inspector.errors import InspectorError
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.memory.reads import RecordingMemory
from inspector.regions import LINEAR_MAP
from inspector.reports.jsonform import check_json, rmap_lines, vms_json
from inspector.reports.text import check_report, rmap_report, vms_report
from inspector.session import Acquired, Origin
from inspector.structures.space import KernelSpace
from tests.fixtures import DIRECTORY, opened
from tests.memories import without
from tests.profiles import examples

ODD_WORDS = (
    0,
    1,
    2,
    0x7FFF_FFFF_FFFF_FFFF,
    0x8000_0000_0000_0000,
    0xC000_0000_0000_0000,
    0xC007_FFFF_FFFF_FFF8,
    0xC008_0000_0000_0000,
    0xC00F_FFFF_FFFF_FFF0,
    0xFFFF_FFFF_FFFF_FFF8,
    0xFFFF_FFFF_FFFF_FFFF,
)


def report_all(acquired: Acquired) -> Verdict:
    """Judge a snapshot and make every report of it."""
    judgement = judge(acquired.snapshot)
    check_json(acquired, judgement)
    vms_json(acquired)
    for lines in (
        check_report(acquired, judgement),
        rmap_report(acquired.snapshot, everything=False),
        vms_report(acquired),
        rmap_lines(acquired.snapshot),
    ):
        assert list(lines) is not None
    return judgement.verdict


@pytest.mark.slow
@pytest.mark.parametrize("name", ["powernv9-singles", "powernv9-two-vms"])
@pytest.mark.parametrize("seed", range(2))
def test_any_word_anywhere_is_judged_or_refused(name: str, seed: int) -> None:
    mutant = Mutant(DIRECTORY / f"{name}.core.zst")
    choose = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(examples(20)):
        row = choose.randrange(mutant.memory.starts.size)
        size = int(mutant.memory.sizes[row])
        place = int(mutant.memory.starts[row]) + choose.randrange(max(1, size // 8)) * 8
        length = min(8, size)
        before = mutant.memory.read(place, length)
        value = choose.choice(
            (
                *ODD_WORDS,
                choose.getrandbits(64),
                pow(2, choose.randrange(64)) ^ int.from_bytes(before),
            )
        )
        mutant.put(place, value.to_bytes(8)[-length:])
        record = RecordingMemory(mutant.memory)
        kernel = KernelSpace(record, mutant.profile)
        try:
            snapshot = collect(kernel, vm_list(kernel))
        except InspectorError as error:
            outcomes[type(error).__name__] += 1
        else:
            acquired = Acquired(
                snapshot, mutant.profile, Origin(target=name, read_path="a test"), record.freeze
            )
            outcomes[report_all(acquired).value] += 1
        mutant.put(place, before)
    assert outcomes["consistent"]
    assert len(outcomes) > 1


@pytest.mark.slow
def test_a_hole_is_no_violation() -> None:
    """Memory that is missing from a target cannot prove a violation."""
    acquired = opened(DIRECTORY / "powernv9-singles.core.zst")
    verdicts: Counter[Verdict | None] = Counter()
    for start, size in zip(acquired.memory.starts, acquired.memory.sizes, strict=True):
        memory = without(acquired.memory, int(start), min(4096, int(size)))
        kernel = KernelSpace(memory, acquired.profile)
        try:
            snapshot: Snapshot | None = collect(kernel, vm_list(kernel))
        except InspectorError:
            snapshot = None
        verdicts[judge(snapshot).verdict if snapshot else None] += 1
    assert verdicts[Verdict.VIOLATIONS] == 0
    assert verdicts[Verdict.INCONCLUSIVE]
    assert verdicts[None]


def test_a_missing_list_node_is_told_apart_from_a_bad_word() -> None:
    mutant = Mutant(DIRECTORY / "powernv9-mixed.core.zst")
    node = int(mutant.slot(3).nodes[1])
    memory = without(mutant.memory, mutant.kernel.physical(node), 16)
    kernel = KernelSpace(memory, mutant.profile)
    snapshot = collect(kernel, vm_list(kernel))
    (vm,) = snapshot.vms
    assert [(problem.kind, problem.link) for problem in vm.rmaps.problems] == [("unreadable", node)]
    assert np.count_nonzero(vm.rmaps.node == np.uint64(node)) == 0
    judgement = judge(snapshot)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert not judgement.findings
    (told,) = [item.gap.text for item in judgement.vms[0].not_judged if "list" in item.invariant.id]
    assert f"{node:#x}" in told


@pytest.mark.parametrize("known", [True, False])
def test_a_link_to_where_no_memory_is(known: bool) -> None:
    """The link is wrong if the target says where its memory is; otherwise memory may be missing."""
    mutant = Mutant(DIRECTORY / "powernv9-mixed.core.zst")
    assert mutant.memory.ram is not None
    link = LINEAR_MAP + (1 << 46)
    mutant.write(mutant.slot(3).where, link)
    memory = mutant.memory if known else mutant.memory.within(None)
    kernel = KernelSpace(memory, mutant.profile)
    judgement = judge(collect(kernel, vm_list(kernel)))
    assert judgement.verdict is (Verdict.VIOLATIONS if known else Verdict.INCONCLUSIVE)
    assert {"rmap-list"} <= {finding.invariant for finding in judgement.findings} or not known


def test_a_guest_that_no_entry_can_name_is_told() -> None:
    mutant = Mutant(DIRECTORY / "powernv9-singles.core.zst")
    idr = mutant.profile.struct("kvm").offset("arch.kvm_nested_guest_idr")
    base = mutant.vm.address + idr + mutant.profile.struct("idr").offset("idr_base")
    mutant.write(base, 5000, 4)
    judgement = judge(mutant.snapshot())
    assert judgement.verdict is Verdict.VIOLATIONS
    told = {finding.invariant: finding for finding in judgement.findings}
    assert "LPID 5001" in told["shadow-leaf-covered"].expected
    assert "found under LPID 5001" in told["nested-lpid"].summary
