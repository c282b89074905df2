"""One wrong word in a capture of a real kernel, and the invariant that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from inspector import encoding, pte
from inspector.checks.base import all_invariants
from inspector.checks.verdict import Judgement, Verdict, judge
from inspector.cli import cli
from inspector.kvm.snapshot import Slot
from tests.fixtures import DIRECTORY, opened
from tests.mutation import Mutant

SOURCES = [
    DIRECTORY / f"{name}.core.zst"
    for name in ("powernv9-mixed", "powernv9-two-vms", "pseries-mixed")
]
SMALL = SOURCES[0]
NOWHERE = 0xC000_0000_0000_0000 | 1 << 50
NEXT, WORD = 0, 8

Mutation = Callable[[Mutant], None]


def overwritten_single(m: Mutant) -> None:
    slot = m.slot(1, 1)
    lpid, gpa = encoding.decode(int(slot.words[0]))
    m.write(slot.where, encoding.encode(lpid, gpa ^ 1 << 40, single=True))


def emptied_slot(m: Mutant) -> None:
    m.write(m.slot(1).where, 0)


def cut_link(m: Mutant) -> None:
    """The first node leads straight to the tail."""
    slot = m.slot(3)
    m.write(int(slot.nodes[0]) + NEXT, int(slot.words[-1]))


def wrong_lpid(m: Mutant) -> None:
    slot = m.slot(2)
    lpid, gpa = encoding.decode(int(slot.words[0]))
    m.write(int(slot.nodes[0]) + WORD, encoding.encode(lpid ^ 0x555, gpa))


def hidden_behind_zero(m: Mutant) -> None:
    """Nothing is lost but the walk: the second of four words becomes zero."""
    m.write(int(m.slot(4).nodes[1]) + WORD, 0)


def cycle(m: Mutant) -> None:
    slot = m.slot(4)
    m.write(int(slot.nodes[2]) + NEXT, int(slot.nodes[1]))


def cycle_of_one(m: Mutant) -> None:
    node = int(m.slot(2).nodes[0])
    m.write(node + NEXT, node)


def pointer_to_nowhere(m: Mutant) -> None:
    m.write(int(m.slot(3).nodes[1]) + NEXT, NOWHERE)


def head_to_nowhere(m: Mutant) -> None:
    m.write(m.slot(2).where, NOWHERE)


def pointer_that_is_no_address(m: Mutant) -> None:
    m.write(m.slot(2).where, 0x1234_5678_9ABC_DEF0)


def misaligned_pointer(m: Mutant) -> None:
    slot = m.slot(2)
    m.write(slot.where, int(slot.nodes[0]) + 4)


def pointer_into_vmalloc(m: Mutant) -> None:
    m.write(m.slot(2).where, m.vm.memslots[0].rmap)


def zero_next(m: Mutant) -> None:
    slot = m.slot(3)
    m.write(int(slot.nodes[-2]) + NEXT, 0)


def duplicate(m: Mutant) -> None:
    slot = m.slot(3)
    m.write(int(slot.nodes[0]) + WORD, int(slot.words[1]))


def duplicate_of_the_tail(m: Mutant) -> None:
    slot = m.slot(2)
    m.write(int(slot.nodes[0]) + WORD, int(slot.words[-1]) & ~1)


def reserved_bits(m: Mutant) -> None:
    slot = m.slot(1, 1)
    m.write(slot.where, int(slot.words[0]) | 0x800)


def reserved_bit_in_a_node(m: Mutant) -> None:
    slot = m.slot(2)
    m.write(int(slot.nodes[0]) + WORD, int(slot.words[0]) | 2)


def single_bit_in_a_node(m: Mutant) -> None:
    slot = m.slot(2)
    m.write(int(slot.nodes[0]) + WORD, int(slot.words[0]) | 1)


def single_bit_lost(m: Mutant) -> None:
    """The kernel would take the entry for a pointer."""
    slot = m.slot(1, 1)
    m.write(slot.where, int(slot.words[0]) & ~1)


def shared_node(m: Mutant) -> None:
    first, second = [slot for slot in m.live_slots() if len(slot.words) > 1][:2]
    m.write(int(first.nodes[len(first.words) - 2]) + NEXT, int(second.nodes[0]))


def list_of_another_slot(m: Mutant) -> None:
    first, second = [slot for slot in m.live_slots() if len(slot.words) > 1][:2]
    m.write(first.where, second.head)


def moved_frame(m: Mutant) -> None:
    """The shadow entry leads to another page of the same guest."""
    slot, other = [slot for slot in m.live_slots() if len(slot.words) == 1][:2]
    where, where_other = (m.shadow_entry(int(s.words[0])) for s in (slot, other))
    m.write_pte(where, m.pte_at(where_other))


def unmapped_frame(m: Mutant) -> None:
    """The shadow entry leads to a page that L0 maps nowhere in this guest."""
    where = m.shadow_entry(int(m.slot(1, 1).words[0]))
    m.write_pte(where, m.pte_at(where) & ~pte.RPN_MASK | 0x7_0000_0000)


def unmapped_and_without_entry(m: Mutant) -> None:
    unmapped_frame(m)
    emptied_slot_of(m)


def emptied_slot_of(m: Mutant) -> None:
    m.write(m.slot(1, 1).where, 0)


def l0_entry_gone(m: Mutant) -> None:
    """L0 has lost its own leaf, as if it had not told the shadow tables."""
    slot = m.slot(1, 1)
    index = m.vm.host.find(np.array([slot.gfn << m.page_shift], dtype=np.uint64))[0]
    m.write_pte(int(m.vm.host.where[index]), 0)


def huge_leaf_misaligned(m: Mutant) -> None:
    """A table of the shadow tree becomes a leaf of 2 MiB with a frame of 4 KiB."""
    where = m.shadow_entry(int(m.slot(1, 1).words[0]))
    m.write_pte(m.entry_above(where), pte.VALID | pte.LEAF | 0x1000)


def table_twice(m: Mutant) -> None:
    """Two entries of a shadow table lead to one table below."""
    where = m.entry_above(m.shadow_entry(int(m.slot(1, 1).words[0])))
    free = where + 8 if not m.pte_at(where + 8) else where - 8
    m.write_pte(free, m.pte_at(where))


def host_leaf(m: Mutant, slot: Slot) -> int:
    """Return the physical address of L0's entry for a slot's page."""
    row = m.vm.host.find(np.array([slot.gfn << m.page_shift], dtype=np.uint64))[0]
    return int(m.vm.host.where[row])


def set_field(m: Mutant, struct: str, address: int, member: str, value: int) -> None:
    offset, size = m.profile.struct(struct).place(member)
    m.write(address + offset, value, size)


def entry_in_a_later_slot(m: Mutant) -> None:
    """L0's leaf becomes a huge one; the entry stays where it is."""
    pages = 1 << 21 - m.page_shift
    where = host_leaf(m, next(slot for slot in m.live_slots() if slot.gfn % pages))
    frame = m.pte_at(where) & ~((1 << 21) - 1) & pte.RPN_MASK
    m.write_pte(m.entry_above(where), frame | m.pte_at(where) & ~pte.RPN_MASK)


def larger_than_l0s(m: Mutant) -> None:
    """A shadow table becomes one leaf of 2 MiB, of which L0 maps the first page only."""
    slot = m.slot(1, 1)
    host, shadow = host_leaf(m, slot), m.shadow_entry(int(slot.words[0]))
    frame = m.pte_at(host) & pte.RPN_MASK & ~((1 << 21) - 1)
    m.write_pte(host, m.pte_at(host) & ~pte.RPN_MASK | frame)
    m.write_pte(m.entry_above(shadow), m.pte_at(shadow) & ~pte.RPN_MASK | frame)


def written_where_l0_may_not(m: Mutant) -> None:
    where = host_leaf(m, m.slot(1, 1))
    m.write_pte(where, m.pte_at(where) & ~pte.WRITE)


def another_cache_attribute(m: Mutant) -> None:
    where = m.shadow_entry(int(m.slot(1, 1).words[0]))
    m.write_pte(where, m.pte_at(where) ^ 0x20)


def page_table_of_another_guest(m: Mutant) -> None:
    one, other = m.vm.nested[:2]
    where, taken = (m.entry_above(int(n.shadow.where[0])) for n in (one, other))
    m.write_pte(where, m.pte_at(taken))


def memslot_moved_into_another(m: Mutant) -> None:
    """The first memslot is said to end later, or if it is alone, to have no array."""
    slots = m.vm.memslots
    if len(slots) > 1:
        set_field(m, "kvm_memory_slot", slots[0].address, "npages", slots[1].base_gfn + 1)
    else:
        set_field(m, "kvm_memory_slot", slots[0].address, "arch.rmap", 0)


def memslot_cut_short(m: Mutant) -> None:
    set_field(m, "kvm_memory_slot", m.vm.memslots[0].address, "npages", 1)


def another_lpid(m: Mutant) -> None:
    nested = m.vm.nested[0]
    set_field(m, "kvm_nested_guest", nested.address, "l1_lpid", nested.lpid ^ 1)


def lpid_of_the_vm(m: Mutant) -> None:
    set_field(m, "kvm_nested_guest", m.vm.nested[0].address, "shadow_lpid", m.vm.lpid)


def lpid_of_the_host(m: Mutant) -> None:
    set_field(m, "kvm_nested_guest", m.vm.nested[0].address, "shadow_lpid", 0)


def no_reference(m: Mutant) -> None:
    set_field(m, "kvm_nested_guest", m.vm.nested[0].address, "refcnt", 0)


def one_reference_too_few(m: Mutant) -> None:
    set_field(m, "kvm_nested_guest", m.vm.nested[0].address, "refcnt", (1 << 64) - 1)


def partition_entry_of_a_guest(m: Mutant) -> None:
    """The hardware walks the table of another nested guest."""
    one, other = m.vm.nested[:2]
    assert one.partition is not None
    assert other.partition is not None
    m.write_pte(one.partition.where, other.partition.dword)


def partition_entry_of_the_vm(m: Mutant) -> None:
    assert m.vm.partition is not None
    m.write_pte(m.vm.partition.where, 0)


BROKEN: list[tuple[Mutation, set[str]]] = [
    (overwritten_single, {"shadow-leaf-covered"}),
    (emptied_slot, {"shadow-leaf-covered"}),
    (cut_link, {"shadow-leaf-covered"}),
    (wrong_lpid, {"shadow-leaf-covered"}),
    (hidden_behind_zero, {"shadow-leaf-covered"}),
    (cycle, {"rmap-list"}),
    (cycle_of_one, {"rmap-list"}),
    (pointer_to_nowhere, {"rmap-list", "shadow-leaf-covered"}),
    (head_to_nowhere, {"rmap-list", "shadow-leaf-covered"}),
    (pointer_that_is_no_address, {"rmap-list", "shadow-leaf-covered"}),
    (misaligned_pointer, {"rmap-list", "shadow-leaf-covered"}),
    (pointer_into_vmalloc, {"rmap-list", "shadow-leaf-covered"}),
    (zero_next, {"rmap-list", "shadow-leaf-covered"}),
    (duplicate, {"rmap-duplicate", "shadow-leaf-covered"}),
    (duplicate_of_the_tail, {"rmap-duplicate", "shadow-leaf-covered"}),
    (reserved_bits, {"rmap-word"}),
    (reserved_bit_in_a_node, {"rmap-word"}),
    (single_bit_in_a_node, {"rmap-word"}),
    (single_bit_lost, {"rmap-list", "shadow-leaf-covered"}),
    (shared_node, {"rmap-node"}),
    (list_of_another_slot, {"rmap-node", "shadow-leaf-covered"}),
    (entry_in_a_later_slot, {"rmap-slot"}),
    (larger_than_l0s, {"shadow-leaf-size"}),
    (written_where_l0_may_not, {"shadow-leaf-permission"}),
    (another_cache_attribute, {"shadow-leaf-permission"}),
    (page_table_of_another_guest, {"table-shared"}),
    (memslot_moved_into_another, {"memslots"}),
    (memslot_cut_short, {"host-leaf-memslot"}),
    (another_lpid, {"nested-lpid"}),
    (lpid_of_the_vm, {"shadow-lpid"}),
    (lpid_of_the_host, {"shadow-lpid"}),
    (no_reference, {"nested-refcount"}),
    (one_reference_too_few, {"nested-refcount"}),
    (partition_entry_of_a_guest, {"partition-entry"}),
    (partition_entry_of_the_vm, {"partition-entry"}),
    (moved_frame, {"shadow-leaf-frame"}),
    (unmapped_frame, {"shadow-leaf-frame"}),
    (unmapped_and_without_entry, {"shadow-leaf-mapped"}),
    (l0_entry_gone, {"shadow-leaf-mapped"}),
    (huge_leaf_misaligned, {"table-form"}),
    (table_twice, {"table-form"}),
]


def judged(mutant: Mutant) -> Judgement:
    return judge(mutant.snapshot())


def invariants(judgement: Judgement) -> set[str]:
    return {finding.invariant for finding in judgement.findings}


@pytest.mark.parametrize(
    ("mutation", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize("path", SOURCES[1:], ids=lambda path: path.name.removesuffix(".core.zst"))
def test_the_invariant_that_is_broken_is_named(
    path: Path, mutation: Mutation, expected: set[str]
) -> None:
    mutant = Mutant(path)
    mutation(mutant)
    judgement = judged(mutant)
    assert judgement.verdict is Verdict.VIOLATIONS
    assert expected <= invariants(judgement)


def test_every_invariant_is_broken_by_some_mutation() -> None:
    broken = {name for _, names in BROKEN for name in names}
    assert broken == {invariant.id for invariant in all_invariants() if not invariant.passing}
    assert {name for _, name in PENDING} == {i.id for i in all_invariants() if i.passing}


@pytest.mark.parametrize(
    ("mutation", "expected"), BROKEN, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_command_says_so(tmp_path: Path, mutation: Mutation, expected: set[str]) -> None:
    mutant = Mutant(SMALL)
    mutation(mutant)
    path = str(mutant.save(tmp_path / "mutant.core.zst"))
    result = CliRunner().invoke(cli, ["check", path])
    assert result.exit_code == 1, result.output
    assert "verdict: violations" in result.stdout
    for name in expected:
        assert f": {name}: " in result.stdout


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


def dropped_leaf(m: Mutant) -> None:
    m.write_pte(m.shadow_entry(int(m.slot(1, 1).words[0])), 0)


def dropped_leaf_of_a_list(m: Mutant) -> None:
    m.write_pte(m.shadow_entry(int(m.slot(3).words[1])), 0)


def l1_entry(m: Mutant) -> int:
    """Return the physical address of L1's entry for a page with one live entry."""
    lpid, gpa = encoding.decode(int(m.slot(1, 1).words[0]))
    nested = m.nested(lpid)
    assert nested.l1 is not None
    row = nested.l1.find(np.array([gpa], dtype=np.uint64))[0]
    return m.guest_physical(int(nested.l1.where[row]))


def l1_changed_its_table(m: Mutant) -> None:
    """L1 has unmapped the page and not yet told L0."""
    m.write_pte(l1_entry(m), 0)


def an_entry_of_no_guest(m: Mutant) -> None:
    """A stale entry more: the newest word of an empty slot."""
    free = next(
        gfn
        for gfn in range(m.vm.memslots[0].base_gfn, 1 << 20)
        if gfn not in {slot.gfn for slot in m.vm.rmaps}
    )
    where = m.vm.memslots[0].rmap + 8 * (free - m.vm.memslots[0].base_gfn)
    m.write(where, encoding.encode(0x777, 0x1000, single=True))


@pytest.mark.parametrize(
    "mutation", [dropped_leaf, dropped_leaf_of_a_list, l1_changed_its_table, an_entry_of_no_guest]
)
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name.removesuffix(".core.zst"))
def test_what_is_legal_stays_consistent(path: Path, mutation: Mutation) -> None:
    mutant = Mutant(path)
    mutation(mutant)
    judgement = judged(mutant)
    assert invariants(judgement) == set()
    assert judgement.verdict is Verdict.CONSISTENT
    before = judge(opened(path).snapshot)
    changed = [vm.counts for vm in judgement.vms] != [vm.counts for vm in before.vms]
    assert changed, "the mutation changed nothing"


def l1_permits_less(m: Mutant) -> None:
    """L1 has taken the permission to write and not yet told L0."""
    where = l1_entry(m)
    m.write_pte(where, m.pte_at(where) & ~pte.WRITE)


def l1_cleared_rc(m: Mutant) -> None:
    where = l1_entry(m)
    m.write_pte(where, m.pte_at(where) & ~pte.RECORDED)


def l0_cleared_rc(m: Mutant) -> None:
    where = host_leaf(m, m.slot(1, 1))
    m.write_pte(where, m.pte_at(where) & ~pte.RECORDED)


PENDING = [
    (l1_changed_its_table, "shadow-leaf-l1"),
    (l1_permits_less, "shadow-leaf-l1"),
    (l1_cleared_rc, "shadow-leaf-rc"),
    (l0_cleared_rc, "shadow-leaf-rc"),
]


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
