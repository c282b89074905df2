"""A short mutation campaign leaves nothing unexplained, and its rules do not allow everything."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fixtures.lab.mutations import PAGE, page
from fixtures.mutations.campaign import CLASSES, ENDS, Outcome, campaign
from fixtures.mutations.everyword import every_word
from fixtures.mutations.legal import RULES, explain
from fixtures.mutations.mutant import Mutant
from fixtures.mutations.reviewed import ALLOWED
from fixtures.mutations.words import words_of
from inspector.kvm.snapshot import Vm
from inspector.structures.radix import LeafTable
from tests.fixtures import DIRECTORY, SPREAD
from tests.profiles import thorough

SHORT = ("powernv9-memslots", "powernv9-stale-5.10-64k")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_no_mutant_is_unexplained(name: str) -> None:
    seed = random.Random(name).randrange(64)
    found = list(campaign(DIRECTORY / f"{name}.core.zst", range(seed, seed + 1), set()))
    assert [one for one in found if one.end == "unexplained"] == []
    assert {one.end for one in found} >= {"found", "legal"}


@pytest.mark.slow
@pytest.mark.parametrize("path", SPREAD[::2], ids=lambda path: path.name.partition(".")[0])
def test_every_word_that_is_read_has_a_name(path: Path) -> None:
    words = words_of(Mutant(path))
    assert words.unnamed.starts.tolist() == []
    assert len(words.by_field) > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["powernv9-two-vms", "powernv9-hash"])
def test_no_word_can_be_damaged_unnoticed(name: str) -> None:
    found = list(every_word(DIRECTORY / f"{name}.core.zst", 1, 1, step=1 if thorough() else 6))
    assert [one for one in found if one.end == "unexplained"] == []
    assert {one.end for one in found} == set(ENDS) - {"unexplained"}


def test_every_reason_is_of_a_rule() -> None:
    assert {rule for rules in ALLOWED.values() for rule in rules} <= RULES.keys()


def test_what_is_done_is_not_done_again() -> None:
    path = DIRECTORY / "powernv9-stale.core.zst"
    done = {(kind, 0) for kind in CLASSES if kind != CLASSES[0]}
    (outcome,) = campaign(path, range(1), done)
    assert (outcome.capture, outcome.kind, outcome.seed) == ("powernv9-stale", CLASSES[0], 0)
    assert list(campaign(path, range(1), {*done, (CLASSES[0], 0)})) == []


def changed(vm: Vm, **others: Any) -> Vm:
    """Return a VM in which members of the VM or of its first nested guest are replaced."""
    own = {key: value for key, value in others.items() if hasattr(vm, key)}
    nested = {key: value for key, value in others.items() if key not in own}
    first = replace(vm.nested[0], **nested)
    return replace(vm, nested=(first, *vm.nested[1:]), **own)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "told"),
    [
        ({"lpid": 77}, "('kvm', 'lpid')"),
        ({"l1_lpid": 77}, "nested-lpid"),
        ({"shadow_lpid": 0}, "shadow-lpid"),
        ({"shadow": LeafTable.empty(), "refcnt": 0}, "nested-refcount"),
        ({"host": LeafTable.empty()}, "shadow-leaf-mapped"),
    ],
)
def test_the_rules_do_not_allow_what_is_broken(others: dict[str, Any], told: str) -> None:
    before = Mutant(DIRECTORY / "powernv9-mixed.core.zst").before
    (vm,) = before.vms
    survivor = explain(before, replace(before, vms=(changed(vm, **others),)))
    assert any(told in text for text in survivor.unexplained)


def test_a_vm_less_is_not_explained() -> None:
    before = Mutant(DIRECTORY / "powernv9-two-vms.core.zst").before
    assert explain(before, before).reasons == ("no-meaning",)
    assert explain(before, replace(before, vms=before.vms[:1])).unexplained


def test_the_page_counts() -> None:
    outcomes = [
        Outcome("a", CLASSES[0], 0, "found", ("rmap-list",)),
        Outcome("a", CLASSES[0], 1, "legal", ("order",)),
        Outcome("b", CLASSES[1], 0, "unexplained", ("nobody knows",)),
    ]
    words = [
        Outcome("a", "kvm.mmu_lock: bit 9", 0, "legal", ("lock-waiters",)),
        Outcome("a", "kvm.arch.lpid: zero", 0, "found", ("partition-entry",)),
    ]
    text = page(outcomes, words, 2)
    assert "| `kvm.mmu_lock` | 1 |  |  | 1 | the lowest bit says" in text
    assert "| `kvm.arch.lpid` | 1 | 1 |  |  |  |" in text
    assert "3 mutants of 2 captures" in text
    assert f"| {CLASSES[0]} | 2 | 1 |  | 1 |  | rmap-list |" in text
    assert "| order | 1 |" in text
    assert "nobody knows" in text


def test_the_manual_has_no_unexplained_mutants() -> None:
    text = PAGE.read_text()
    assert "\n## Unexplained" not in text
    assert all(f"| {name} | " in text for name in RULES)
    assert all(end in text for end in ENDS)
