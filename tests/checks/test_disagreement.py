"""The arrays and the model both state each rule; a disagreement between them is reported."""

from __future__ import annotations

import numpy as np
import pytest

from inspector.checks import proof
from inspector.checks.findings import DISAGREEMENT
from inspector.checks.invariants import host_leaf_memslot, rmap_slot
from inspector.checks.verdict import Judgement, Verdict, judge
from inspector.checks.view import CheckedVm
from inspector.reports.jsonform import finding_json
from inspector.reports.text import finding_lines
from tests.fixtures import DIRECTORY, opened


@pytest.fixture
def undisturbed() -> Judgement:
    return judge(opened(DIRECTORY / "powernv9-singles.core.zst").snapshot)


def disagrees(judgement: Judgement, over: str) -> None:
    """Assert that a judgement says that the tool contradicts itself, and concludes nothing."""
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert {finding.invariant for finding in judgement.findings} == {DISAGREEMENT}
    (finding, *_) = judgement.findings
    assert f"this tool contradicts itself on {over}: " in finding.summary
    assert finding_json(finding)["severity"] == "tool"
    assert any("is a bug of the inspector" in line for line in finding_lines(1, finding))


def test_the_leaves_of_l0(undisturbed: Judgement, monkeypatch: pytest.MonkeyPatch) -> None:
    assert undisturbed.verdict is Verdict.CONSISTENT
    nowhere = property(lambda self: np.zeros(len(self.vm.host), dtype=np.bool_))
    monkeypatch.setattr(CheckedVm, "in_memslot", nowhere)
    disagrees(judge(undisturbed.snapshot), host_leaf_memslot.ID)


def test_the_places_of_entries(undisturbed: Judgement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckedVm, "misplaced", property(lambda self: self.live))
    disagrees(judge(undisturbed.snapshot), rmap_slot.ID)


def test_the_cover_of_leaves(undisturbed: Judgement, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_suspect(self: CheckedVm) -> tuple[object, ...]:
        return tuple(self.suspect(nested, 0) for nested in self.vm.nested if len(nested.shadow))

    monkeypatch.setattr(CheckedVm, "suspects", property(all_suspect))
    disagrees(judge(undisturbed.snapshot), "shadow-leaf-covered")


def test_the_rights_of_leaves(undisturbed: Judgement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "judge_rights", lambda *given: None)
    (vm,) = undisturbed.snapshot.vms
    found = proof.rights_findings(
        CheckedVm(vm, undisturbed.snapshot.page_shift),
        "an-invariant",
        lambda rights: rights.covered,
        lambda leaf, judgement: ("", ""),
    )
    assert {finding.invariant for finding in found} == {DISAGREEMENT}
