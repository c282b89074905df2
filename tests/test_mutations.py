"""One wrong word in a capture of a real kernel, and the invariant that it breaks."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures.mutations.allowed import LEGAL
from fixtures.mutations.damage import (
    BROKEN,
    PENDING,
    Mutation,
    cut_link,
    cycle,
    emptied_slot,
    reserved_bits,
)
from fixtures.mutations.mutant import Mutant, NotApplicableError
from inspector.checks.base import all_invariants
from inspector.checks.verdict import Judgement, Verdict, judge
from inspector.cli import cli
from tests.fixtures import DIRECTORY
from tests.profiles import thorough

SOURCES = [
    DIRECTORY / f"{name}.core.zst"
    for name in ("powernv9-mixed", "powernv9-two-vms", "pseries-mixed")
]
SMALL = SOURCES[0]
MEMSLOTS = DIRECTORY / "powernv9-memslots.core.zst"
HASH = DIRECTORY / "powernv9-hash.core.zst"


def named(value: object) -> str:
    """Return a parameter's name in the name of a test."""
    return (
        value.name.partition(".")[0] if isinstance(value, Path) else getattr(value, "__name__", "")
    )


def damaged(path: Path, mutation: Mutation) -> Mutant:
    """Return a damaged capture; take another one if this one has nothing to damage that way."""
    for one in (path, MEMSLOTS, HASH):
        mutant = Mutant(one)
        with suppress(NotApplicableError):
            mutation(mutant)
            return mutant
    raise AssertionError(f"{mutation.__name__} applies to none")


def judged(mutant: Mutant) -> Judgement:
    return judge(mutant.snapshot())


def invariants(judgement: Judgement) -> set[str]:
    return {finding.invariant for finding in judgement.findings}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "mutation", "expected"),
    [
        (path, *case)
        for at, case in enumerate(BROKEN)
        for row, path in enumerate(SOURCES[1:])
        if thorough() or at % 2 == row
    ],
    ids=named,
)
def test_the_invariant_that_is_broken_is_named(
    path: Path, mutation: Mutation, expected: set[str]
) -> None:
    mutant = damaged(path, mutation)
    judgement = judged(mutant)
    assert judgement.verdict is Verdict.VIOLATIONS
    assert expected <= invariants(judgement)


def test_every_invariant_is_broken_by_some_mutation() -> None:
    broken = {name for _, names in BROKEN for name in names}
    assert broken == {invariant.id for invariant in all_invariants() if not invariant.passing}
    assert {name for _, name in PENDING} == {i.id for i in all_invariants() if i.passing}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutation", "expected"),
    BROKEN if thorough() else {frozenset(case[1]): case for case in BROKEN}.values(),
    ids=named,
)
def test_the_command_says_so(tmp_path: Path, mutation: Mutation, expected: set[str]) -> None:
    mutant = damaged(SMALL, mutation)
    path = str(mutant.save(tmp_path / "mutant.core.zst"))
    result = CliRunner().invoke(cli, ["check", path])
    assert result.exit_code == 1, result.output
    assert "verdict: violations" in result.stdout
    for name in expected:
        assert f": {name}: " in result.stdout


@pytest.mark.slow
def test_the_document_says_so(tmp_path: Path) -> None:
    mutant = Mutant(SMALL)
    for mutation in (cut_link, cycle, reserved_bits):
        mutation(mutant)
    path = str(mutant.save(tmp_path / "mutant.core.zst"))
    result = CliRunner().invoke(cli, ["check", "--json", path])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["verdict"] == "violations"
    findings = [finding for vm in document["vms"] for finding in vm["findings"]]
    assert {"rmap-list", "rmap-word"} <= {finding["invariant"] for finding in findings}
    assert all(finding["evidence"] and finding["expected"] for finding in findings)
    assert CliRunner().invoke(cli, ["rmap", path]).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("mutation", LEGAL, ids=lambda mutation: mutation.__name__)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name.removesuffix(".core.zst"))
def test_what_is_legal_stays_consistent(path: Path, mutation: Mutation) -> None:
    mutant = Mutant(path)
    try:
        mutation(mutant)
    except NotApplicableError:
        # a pseries host has no entry of its own in its partition table
        assert "pseries" in path.name
        return
    judgement = judged(mutant)
    assert invariants(judgement) == set()
    assert judgement.verdict is Verdict.CONSISTENT
    assert mutant.changed


@pytest.mark.slow
@pytest.mark.parametrize(("mutation", "expected"), PENDING)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name.removesuffix(".core.zst"))
def test_what_may_be_legal_is_counted_and_proved(
    path: Path, mutation: Mutation, expected: str, tmp_path: Path
) -> None:
    mutant = Mutant(path)
    mutation(mutant)
    judgement = judged(mutant)
    assert judgement.verdict is Verdict.CONSISTENT
    (pending,) = [item for vm in judgement.vms for item in vm.pending]
    assert pending.invariant.id == expected
    assert pending.count == len(pending.examples) == 1
    (example,) = pending.examples
    assert example.invariant == expected
    assert example.evidence
    saved = str(mutant.save(tmp_path / "mutant.core.zst"))
    result = CliRunner().invoke(cli, ["check", saved])
    assert result.exit_code == 0
    assert f"1 pending: {expected}: " in result.stdout
    document = json.loads(CliRunner().invoke(cli, ["check", "--json", saved]).stdout)
    (told,) = [item for vm in document["vms"] for item in vm["pending"]]
    assert (told["invariant"], told["count"], len(told["examples"])) == (expected, 1, 1)


@pytest.mark.slow
def test_a_held_lock_concludes_nothing(tmp_path: Path) -> None:
    mutant = Mutant(SMALL)
    emptied_slot(mutant)
    lock = mutant.vm.address + mutant.profile.struct("kvm").offset("mmu_lock")
    mutant.write(lock, 1, 4)
    judgement = judged(mutant)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert any("mmu_lock was held" in note for vm in judgement.vms for note in vm.notes)
    result = CliRunner().invoke(cli, ["check", str(mutant.save(tmp_path / "held"))])
    assert result.exit_code == 3
    assert "verdict: inconclusive" in result.stdout
