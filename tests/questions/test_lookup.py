"""A page gives the same chain whichever of its addresses is looked up."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given

from inspector import encoding
from inspector.checks.view import CheckedVm, ModelView
from inspector.errors import BadData
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.model.vm import LeafState, VmState, judge_entry
from inspector.questions.lookup import Kind, Question, lookup
from inspector.questions.parts import Answer, Mark
from tests.builders import leaf, snapshot_vm, table, vm_states, words
from tests.fixtures import DIRECTORY, SMALL, SPREAD, opened

STACK = DIRECTORY / "powernv9-linux.core.zst"
WITH_GUESTS = [
    path for path in SPREAD if not any(word in path.name for word in ("hash", "no-", "released"))
]


def ask(snapshot: Snapshot, kind: Kind, value: int, lpid: int = 0, vm: int | None = None) -> Answer:
    return lookup(snapshot, Question(kind, value, lpid, vm), None)


def snapshot_of(*states: VmState, page_shift: int = 12) -> Snapshot:
    vms = tuple(snapshot_vm(state, number=i) for i, state in enumerate(states))
    return Snapshot(release="6.12", build_id="", page_shift=page_shift, vms=vms)


def some_leaves(vm: Vm, count: int) -> list[tuple[int, int]]:
    places = [
        (nested.lpid, address) for nested in vm.nested for address in nested.shadow.address.tolist()
    ]
    return Random(1).sample(places, min(count, len(places)))


@pytest.mark.slow
@pytest.mark.parametrize("path", WITH_GUESTS, ids=lambda path: path.name)
def test_one_chain_by_every_address(path: Path) -> None:
    snapshot = opened(path).snapshot
    leaves = [(vm, *place) for vm in snapshot.vms for place in some_leaves(vm, 4)]
    assert leaves
    for vm, lpid, address in leaves:
        (chain,) = ask(snapshot, Kind.L2, address, lpid, vm.lpid).l2_pages
        assert chain.shadow is not None
        assert chain.shadow_address is not None
        mapping = next(
            one
            for host in ask(snapshot, Kind.HPA, chain.shadow_address).host_pages
            for one in host.mapped_by
            if one.vm == vm.lpid and one.lpid is None
        )
        gfn = mapping.address >> snapshot.page_shift
        if chain.l1_address is not None and chain.agrees:
            gfn = chain.l1_address >> snapshot.page_shift
        others = [
            ask(snapshot, Kind.GFN, gfn, vm=vm.lpid),
            ask(snapshot, Kind.GPA, gfn << snapshot.page_shift, vm=vm.lpid),
            ask(snapshot, Kind.HPA, chain.shadow_address),
        ]
        word = encoding.encode(lpid, chain.shadow.leaf.address)
        others.append(ask(snapshot, Kind.WORD, word, vm=vm.lpid))
        for answer in others:
            assert chain in answer.l2_pages
            assert gfn in [page.gfn for page in answer.l1_pages if page.vm == vm.lpid]


@pytest.mark.slow
def test_the_chain_of_the_stack_is_whole() -> None:
    snapshot = opened(STACK).snapshot
    (vm,) = snapshot.vms
    for lpid, address in some_leaves(vm, 12):
        answer = ask(snapshot, Kind.L2, address, lpid)
        (chain,) = answer.l2_pages
        assert chain.state is LeafState.COVERED
        assert (chain.lpid, chain.address) == (lpid, address)
        live = [entry for entry in chain.entries if entry.mark is Mark.LIVE]
        assert chain.slot in [entry.gfn for entry in live]
        assert answer.findings == ()
        mapped = {(one.lpid, one.address) for host in answer.host_pages for one in host.mapped_by}
        assert (lpid, address) in mapped


@pytest.mark.slow
@given(vm_states(12))
def test_marks_are_the_models(state: VmState) -> None:
    snapshot = snapshot_of(state)
    model = ModelView(CheckedVm(snapshot.vms[0], 12))
    for gfn, words_there in state.slots.items():
        (page,) = ask(snapshot, Kind.GFN, gfn).l1_pages
        slot = next((slot for slot in page.slots if slot.gfn == gfn), None)
        if not words_there:
            continue
        assert slot is not None
        assert [entry.word for entry in slot.entries] == list(words_there)
        for entry in slot.entries:
            lead = judge_entry(model, gfn, entry.word)
            if entry.mark is Mark.SUSPICIOUS:
                assert answer_names(snapshot, gfn)
            elif entry.mark is Mark.STALE:
                assert entry.why.startswith(lead.value)
            else:
                assert lead.value == entry.mark.value


def answer_names(snapshot: Snapshot, gfn: int) -> bool:
    return bool(ask(snapshot, Kind.GFN, gfn).findings)


def test_what_stands_at_a_kernel_address() -> None:
    snapshot = opened(SMALL).snapshot
    (vm,) = snapshot.vms
    slot = next(slot for slot in vm.rmaps if len(slot.words) > 2)
    for place, said in (
        (int(slot.nodes[1]), "entry 1 of"),
        (int(slot.nodes[1]) + 8, "entry 1 of"),
        (slot.where, "in the rmap array of memslot"),
        (vm.memslots[0].address, "rmap array at"),
        (vm.address, "struct kvm"),
        (vm.nested[0].address, "kvm_nested_guest"),
        (vm.nested[0].shadow_pgtable, "root of the shadow table"),
        (vm.memslots[0].places["npages"][0], "npages in memslot"),
    ):
        answer = ask(snapshot, Kind.ADDRESS, place)
        assert any(said in meaning for meaning in answer.meanings), (said, answer.meanings)
    by_node = ask(snapshot, Kind.ADDRESS, int(slot.nodes[1]))
    assert slot.gfn in [page.gfn for page in by_node.l1_pages]

    where = int(vm.nested[0].shadow.where[0])
    assert any("shadow entry" in m for m in ask(snapshot, Kind.HPA, where).meanings)


def test_a_pointer_is_followed_as_a_word() -> None:
    snapshot = opened(SMALL).snapshot
    slot = next(slot for slot in snapshot.vms[0].rmaps if len(slot.words) > 2)
    answer = ask(snapshot, Kind.WORD, slot.head)
    lpid, address = encoding.decode(int(slot.words[0]))
    assert (lpid, address) in [(page.lpid, page.address) for page in answer.l2_pages]


def test_two_vms_that_map_one_host_page() -> None:
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000)),
        {1: words((1, 0x5000))},
        {1: table(leaf(0x5000, 0x40_0000))},
        {1: table(leaf(0x5000, 0x1000))},
    )
    answer = ask(snapshot_of(state, state), Kind.HPA, 0x40_0123)
    (host,) = answer.host_pages
    assert [(one.vm, one.lpid, one.address) for one in host.mapped_by] == [
        (1, None, 0x1000),
        (1, 1, 0x5000),
        (101, None, 0x1000),
        (101, 1, 0x5000),
    ]
    assert len(answer.l2_pages) == 2
    one = ask(snapshot_of(state, state), Kind.HPA, 0x40_0123, vm=101)
    assert {page.vm for page in one.l2_pages} == {101}
    assert one.host_pages == answer.host_pages


def test_an_entry_in_a_finding_is_suspicious() -> None:
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000)),
        {1: words((1, 0x5000), (1, 0x6000), (1, 0x5000))},
        {1: table(leaf(0x5000, 0x40_0000))},
        {1: table(leaf(0x5000, 0x1000))},
    )
    answer = ask(snapshot_of(state), Kind.GFN, 1)
    (page,) = answer.l1_pages
    marks = [entry.mark for entry in page.slots[0].entries]
    assert marks == [Mark.SUSPICIOUS, Mark.STALE, Mark.SUSPICIOUS]
    assert {finding.invariant for finding in answer.findings} == {"rmap-duplicate"}


def test_a_leaf_nobody_finds_again() -> None:
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000)),
        {},
        {1: table(leaf(0x5000, 0x40_0000))},
        {1: table(leaf(0x5000, 0x1000))},
    )
    answer = ask(snapshot_of(state), Kind.L2, 0x5000, 1)
    (chain,) = answer.l2_pages
    assert chain.state is LeafState.LOST
    assert chain.agrees
    assert [finding.invariant for finding in answer.findings] == ["shadow-leaf-covered"]


def test_the_limit_counts_what_it_leaves_out() -> None:
    gpas = range(0x5000, 0xF000, 0x1000)
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000)),
        {1: words(*((1, gpa) for gpa in gpas))},
        {1: table(*(leaf(gpa, 0x40_0000) for gpa in gpas))},
        {1: table(*(leaf(gpa, 0x1000) for gpa in gpas))},
    )
    answer = lookup(snapshot_of(state), Question(Kind.GFN, 1), 4)
    assert (len(answer.l2_pages), answer.left_out) == (4, len(gpas) - 4)


def test_what_is_not_there() -> None:
    snapshot = opened(SMALL).snapshot
    assert any("no memslot" in m for m in ask(snapshot, Kind.GFN, 1 << 38).meanings)
    assert any("no nested guest" in m for m in ask(snapshot, Kind.L2, 0x1000, 77).meanings)
    with pytest.raises(BadData, match="no VM with LPID 9"):
        ask(snapshot, Kind.GFN, 1, vm=9)
