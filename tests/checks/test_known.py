"""Memory that is known to hold the host's own data, and leaves that map it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from inspector import pte
from inspector.checks.known import KnownMemory
from inspector.checks.verdict import Judgement, Verdict, judge
from inspector.kvm.snapshot import ArrayPages, HostState, Region, Snapshot, Vm
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges
from inspector.model.vm import VmState
from inspector.structures.radix import TableArrays
from tests.builders import leaf, snapshot_vm, table, words

SIZES = {"kvm": 0x800, "kvm_memory_slot": 0x100, "kvm_nested_guest": 0x400, "rmap_nested": 16}
IMAGE = Region(0x200_0000, 0x280_0000, "the kernel's data", "__init_end", 0xC000_0000_0200_0000)
ZERO_PAGE = 0x220_0000
HOST = HostState(
    ram=Ranges(addresses([0]), addresses([1 << 32])),
    regions=(Region(0, 0x1000, "the interrupt vectors", "", 0), IMAGE),
    zero_page=ZERO_PAGE,
    root=0x210_0000,
    sizes=SIZES,
    partition=0x300_0000,
)
FREE = 0x4000_0000
STATE = VmState(
    12,
    table(leaf(0x1000, FREE)),
    {1: words((1, 0x5000), (2, 0x6000))},
    {1: table(leaf(0x5000, FREE))},
)


def tables(*rows: tuple[int, int]) -> TableArrays:
    """Return tables of 512 entries, each with its address and the entry that leads to it."""
    where, entry = zip(*rows, strict=True)
    count = len(rows)
    return TableArrays(
        addresses(where),
        addresses(range(count)),
        np.full(count, 9, np.uint64),
        addresses([0x900 + 8 * i for i in range(count)]),
        addresses(entry),
    )


def vm_with(number: int = 0, *, host: int = FREE, bits: int | None = None) -> Vm:
    """Return a VM whose leaf for gfn 2 maps a page."""
    extra = leaf(0x2000, host) if bits is None else leaf(0x2000, host, 12, bits)
    return snapshot_vm(
        replace(STATE, host=table(*STATE.host.leaves.values(), extra)), number=number
    )


def judged(*vms: Vm, host: HostState = HOST) -> Judgement:
    return judge(Snapshot(release="release", build_id="id", page_shift=12, vms=vms, host=host))


def names(judgement: Judgement) -> list[str]:
    return [finding.invariant for finding in judgement.findings]


def test_a_page_that_nobody_uses_is_a_guests() -> None:
    assert judged(vm_with()).verdict is Verdict.CONSISTENT


@pytest.mark.parametrize(
    ("page", "what"),
    [
        (0x0, "the interrupt vectors"),
        (0x210_0000, "the kernel's data"),
        (0x27F_F000, "the kernel's data"),
        (0x300_F000, "the partition table"),
        (0x1_0000, "struct kvm of VM 1"),
        (0x2_0000, "memslot 0 of VM 1"),
        (0x3_1000, "struct kvm_nested_guest of L2 1 of VM 1"),
        (0x1000_0000, "a list node of VM 1"),
    ],
)
def test_a_leaf_maps_no_page_of_the_hosts(page: int, what: str) -> None:
    (finding,) = judged(vm_with(host=page)).findings
    assert finding.invariant == "leaf-kernel-page"
    assert what in finding.summary
    assert finding.evidence[0].value == (page | leaf(0, 0).entry)
    assert len(finding.evidence) > 1


def test_what_another_vm_keeps_is_the_hosts_too() -> None:
    first = vm_with(host=(1 << 32) - 0x1000)
    array = ArrayPages(0, addresses([0xC008_0000_0000_0000]), addresses([(1 << 32) - 0x1000]))
    owner = replace(snapshot_vm(STATE, number=0), lpid=9, nested=())
    owner = replace(
        owner,
        address=owner.address + 0x10_0000,
        rmaps=replace(owner.rmaps, pages=(array,), node=owner.rmaps.node * np.uint64(0)),
        memslots=tuple(replace(slot, address=slot.address + 0x8000) for slot in owner.memslots),
    )
    found = judged(first, owner).vms[0].findings
    assert [f.invariant for f in found if f.invariant != "table-shared"] == ["leaf-kernel-page"]
    assert "the rmap array of memslot 0 of VM 9" in found[0].summary
    # the tables of a VM whose lock is held may lead to freed memory
    held = judged(first, replace(owner, locked=True)).vms[0].findings
    assert held == ()


def test_the_page_of_zeros_may_be_read_and_not_written() -> None:
    readable = leaf(0, 0).entry & ~pte.WRITE
    assert judged(vm_with(host=ZERO_PAGE, bits=readable)).verdict is Verdict.CONSISTENT
    assert names(judged(vm_with(host=ZERO_PAGE))) == ["leaf-kernel-page"]
    beside = vm_with(host=ZERO_PAGE + 0x1000, bits=readable)
    assert names(judged(beside)) == ["leaf-kernel-page"]


def test_a_huge_leaf_that_holds_one_page_of_the_hosts_is_found() -> None:
    """The page lies in the middle of the leaf, far from where it begins."""
    big = leaf(0x20_0000, 0x1000_0000, 21)
    vm = snapshot_vm(replace(STATE, host=table(*STATE.host.leaves.values(), big)))
    node = np.uint64(vm.rmaps.node[0]) + np.uint64(0x12_3450)
    moved = replace(vm.rmaps, node=np.where(vm.rmaps.node == 0, np.uint64(0), node))
    (finding,) = judged(replace(vm, rmaps=moved)).findings
    assert finding.invariant == "leaf-kernel-page"
    assert "a list node" in finding.summary


def test_a_leaf_maps_memory_or_a_device() -> None:
    beyond = 1 << 32
    assert names(judged(vm_with(host=beyond))) == ["leaf-memory"]
    device = leaf(0, 0).entry | pte.CACHE_INHIBITED
    assert judged(vm_with(host=beyond, bits=device)).verdict is Verdict.CONSISTENT
    two = replace(HOST, ram=Ranges(addresses([0, 1 << 33]), addresses([1 << 32, 1 << 30])))
    assert names(judged(vm_with(host=beyond), host=two)) == ["leaf-memory"]
    assert judged(vm_with(host=1 << 33), host=two).verdict is Verdict.CONSISTENT
    assert names(judged(vm_with(host=(1 << 33) + (1 << 30)), host=two)) == ["leaf-memory"]


def test_what_is_not_known_is_said() -> None:
    judgement = judged(vm_with(host=1 << 40), host=HostState())
    assert judgement.verdict is Verdict.CONSISTENT
    unjudged = {invariant for invariant, _ in judgement.basis.unjudged}
    assert {"leaf-memory", "leaf-kernel-page"} <= unjudged


@pytest.mark.parametrize("bit", [6, 57, 58, 59, 60, 3])
def test_bits_of_a_leaf_that_kvm_never_writes(bit: int) -> None:
    (finding,) = judged(vm_with(bits=leaf(0, 0).entry | (1 << bit))).findings
    assert finding.invariant == "entry-bits"
    assert f"{1 << bit:#x}" in finding.summary


@pytest.mark.parametrize("bit", [9, 10, 11, 61])
def test_bits_that_only_software_looks_at_may_be_set(bit: int) -> None:
    assert judged(vm_with(bits=leaf(0, 0).entry | (1 << bit))).verdict is Verdict.CONSISTENT


def test_a_leaf_permits_something() -> None:
    nothing = leaf(0, 0).entry & ~pte.PERMISSIONS
    assert names(judged(vm_with(bits=nothing))) == ["entry-bits"]
    shadow = VmState(12, STATE.host, STATE.slots, {1: table(leaf(0x5000, FREE, 12, nothing))})
    judgement = judged(snapshot_vm(shadow))
    assert judgement.findings == ()
    assert judgement.verdict is Verdict.INCONCLUSIVE
    (doubt,) = judgement.vms[0].doubts
    assert (doubt.invariant, bool(doubt.doubt)) == ("entry-bits", True)


@pytest.mark.parametrize("bit", [5, 6, 7, 60, 61])
def test_bits_of_an_entry_above_a_table(bit: int) -> None:
    vm = vm_with()
    good = pte.VALID | 0x5000_0000 | 9
    host = replace(vm.host, tables=tables((0x5000_0000, good)))
    assert judged(replace(vm, host=host)).verdict is Verdict.CONSISTENT
    host = replace(vm.host, tables=tables((0x5000_0000, good | (1 << bit))))
    (finding,) = judged(replace(vm, host=host)).findings
    assert (finding.invariant, finding.evidence[0].address) == ("entry-bits", 0x900)


def test_tables_and_nodes_do_not_overlap() -> None:
    vm = vm_with()
    node = int(vm.rmaps.node[0]) & 0xFFFF_FFFF
    host = replace(vm.host, tables=tables((node & ~0xFFF, pte.VALID)))
    (finding,) = judged(replace(vm, host=host)).findings
    assert finding.invariant == "memory-shared"
    assert "a list node of VM 1 and L0's table for VM 1" in finding.summary


def test_one_array_serves_no_two_vms() -> None:
    """An overlap is reported once, with the number of the other pages."""
    pages = ArrayPages(
        0, addresses([0xC008_0000_0000_0000, 0xC008_0000_0000_1000]), addresses([0x7000, 0x9000])
    )
    vms = []
    for number in (0, 1):
        vm = vm_with(number)
        slots = tuple(replace(s, address=s.address + (number << 20)) for s in vm.memslots)
        vms.append(replace(vm, memslots=slots, rmaps=replace(vm.rmaps, pages=(pages,))))
    judgement = judged(*vms)
    for vm_judgement in judgement.vms:
        (finding,) = vm_judgement.findings
        assert finding.invariant == "memory-shared"
        assert "of VM 1 and the rmap array of memslot 0 of VM 101" in finding.summary
        assert "physical 0x7000 and in 1 other places" in finding.summary


def test_two_vms_may_map_one_page() -> None:
    slots = tuple(replace(slot, address=slot.address + 0x8000) for slot in vm_with(1).memslots)
    both = judged(vm_with(0), replace(vm_with(1), memslots=slots))
    assert both.verdict is Verdict.CONSISTENT


def test_ranges_of_any_size_are_found_again() -> None:
    """The bitmap of chunks never misses what an exact comparison finds."""
    random = np.random.default_rng(1)
    for _ in range(20):
        vm = vm_with()
        at = (random.integers(0, 1 << 40, 50) & ~0xFFF).tolist()
        known = KnownMemory(
            Snapshot(
                release="release",
                build_id="id",
                page_shift=12,
                vms=(replace(vm, host=replace(vm.host, tables=tables(*((x, 0) for x in at)))),),
                host=HOST,
            )
        )
        hit = random.choice(at, 20).tolist()
        miss = [x + 0x1000 for x in hit if x + 0x1000 not in at]
        frames = sorted({*hit, *miss})
        leaves = snapshot_vm(
            VmState(12, table(*(leaf(0x1000 * i, frame) for i, frame in enumerate(frames))))
        ).host
        met = {frames[i] for i in known.met_by(leaves)}
        assert set(hit) <= met
        assert met == {x for x in frames if x in at or known.things_in(x, 4096)}
