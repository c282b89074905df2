"""Walkers of the kernel's structures, on captures of real kernels with words changed in memory.

An input is a row of changes.  A change applies to a word that the walker reads
in the unchanged capture; the numbers in a change are taken modulo the number of
choices, so every input is valid.
"""

from __future__ import annotations

import functools
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from fixtures.mutations.mutant import Mutant
from inspector import pte
from inspector.checks.verdict import judge
from inspector.kernel.host import module_types, require_radix
from inspector.kvm.collect import collect, held_locks, vm_list
from inspector.kvm.containers import memslot_addresses, nested_guest_addresses
from inspector.kvm.hash_rmap import read_hash_rmaps
from inspector.kvm.partition import partition_entry, partition_table
from inspector.kvm.rmap import read_rmaps
from inspector.memory.numbers import addresses
from inspector.memory.segments import SegmentedMemory
from inspector.reports.jsonform import check_json, rmap_lines, vms_json
from inspector.reports.text import check_report, rmap_report, vms_report
from inspector.session import Acquired, Origin
from inspector.structures.lists import list_entries
from inspector.structures.modules import (
    exported_symbol,
    find_modules,
    module_contents,
    module_symbols,
)
from inspector.structures.radix import collect_leaves, translate
from inspector.structures.space import GuestSpace, KernelSpace
from tests.fixtures import DIRECTORY
from tests.fuzz.mutate import EDGES
from tests.fuzz.target import Target, asked

__all__ = ["WALKERS"]

LINEAR = 0xC000_0000_0000_0000
CHANGE = struct.Struct("<HBBQ")
"""Fields of a change: the word, the kind of change, a small number, and a large one."""
WAYS = 10
MOST_CHANGES = 8
ZEROS = 64
"""Number of zero words that may be changed in one piece that is read."""
SIZES = (1, 2, 4, 8)

Walker = Callable[[KernelSpace, Mutant], object]


class _Site(NamedTuple):
    where: int
    size: int


class _Walk:
    """A walker of a capture, and the words of the capture that it reads."""

    def __init__(self, capture: str, walker: Walker) -> None:
        self._mutant = Mutant(DIRECTORY / f"{capture}.core.zst")
        self._walker = walker
        self._little = self._mutant.profile.byte_order == "<"
        self._sites = self._found()

    def _found(self) -> list[_Site]:
        record = _Pieces(self._mutant.memory)
        self._walker(KernelSpace(record, self._mutant.profile), self._mutant)
        found: dict[int, _Site] = {}
        for where, length in record.pieces:
            if length in SIZES:
                found.setdefault(where, _Site(where, length))
                continue
            data = self._mutant.memory.read(where, length // 8 * 8)
            values = np.frombuffer(data, dtype=np.uint64)
            zero = np.flatnonzero(values == 0)
            some = [*np.flatnonzero(values), *zero[:: max(1, zero.size // ZEROS)]]
            for row in map(int, some):
                found.setdefault(where + 8 * row, _Site(where + 8 * row, 8))
        return list(found.values())

    def __call__(self, data: bytes) -> None:
        try:
            for at in range(0, min(len(data), MOST_CHANGES * CHANGE.size), CHANGE.size):
                piece = data[at : at + CHANGE.size].ljust(CHANGE.size, b"\0")
                self._change(*CHANGE.unpack(piece))
            self._walker(KernelSpace(self._mutant.memory, self._mutant.profile), self._mutant)
        finally:
            self._mutant.undo()

    def _change(self, number: int, way: int, small: int, large: int) -> None:
        site = self._sites[number % len(self._sites)]
        other = self._sites[large % len(self._sites)]
        old = int.from_bytes(self._mutant.memory.read(site.where, site.size), "little")
        value, swapped = self._value(way % WAYS, small, large, site, other, old)
        raw = (value % (1 << 64)).to_bytes(8, "little" if self._little != swapped else "big")
        self._mutant.put(site.where, raw[: site.size] if self._little else raw[-site.size :])

    def _value(
        self, way: int, small: int, large: int, site: _Site, other: _Site, old: int
    ) -> tuple[int, bool]:
        """Return a value, and whether its byte order is not the kernel's."""
        swapped = bool(small & 1) and not self._little
        if way < 3:
            return EDGES[large % len(EDGES)], False
        if way == 3:
            return large, False
        if way == 4:
            return LINEAR | (other.where - (small & 0xF8)), False
        if way == 5:
            return LINEAR | (site.where - (small & 0xF8)), False
        if way == 6:
            raw = self._mutant.memory.read(other.where, other.size)
            return int.from_bytes(raw, "little" if self._little else "big"), False
        if way == 7:
            code = "little" if self._little else "big"
            return int.from_bytes(old.to_bytes(8, "little")[: site.size], code) + small - 128, False  # type: ignore[arg-type]
        if way == 8:
            # a page-table entry, which leads to a table or maps a page
            leaf = pte.LEAF if small & 0x80 else (small >> 1) & 0x1F
            return pte.VALID | (other.where & pte.NEXT_TABLE_MASK) | leaf, self._little or swapped
        return old ^ (1 << (large % 64)), False


class _Pieces:
    """A memory that remembers the places that were read, and the length of each read."""

    name = "physical"

    def __init__(self, inner: SegmentedMemory) -> None:
        self._inner = inner
        self.pieces: dict[tuple[int, int], None] = {}

    def read(self, address: int, length: int) -> bytes:
        found = self._inner.read(address, length)
        self.pieces[address, length] = None
        return found

    def read_many(self, where: Any, length: int) -> Any:
        records = self._inner.read_many(where, length)
        self.pieces |= {(place, length): None for place in where[records.present].tolist()}
        return records


def _lists(kernel: KernelSpace, mutant: Mutant) -> None:
    symbols = kernel.profile.symbols
    head = _vms(mutant)
    asked(list_entries, kernel, symbols["modules"], "module", "list")
    asked(list_entries, kernel, head, "kvm", "vm_list")
    asked(held_locks, kernel, head)


def _vms(mutant: Mutant) -> int:
    found = mutant._vms
    assert found is not None
    return found


def _rmaps(kernel: KernelSpace, mutant: Mutant) -> None:
    for vm in mutant.before.vms:
        if vm.radix:
            read_rmaps(kernel, vm.memslots)


def _hash_rmaps(kernel: KernelSpace, mutant: Mutant) -> None:
    for vm in mutant.before.vms:
        if not vm.radix:
            read_hash_rmaps(kernel, vm.address, vm.memslots, [])


def _containers(kernel: KernelSpace, mutant: Mutant) -> None:
    for vm in mutant.before.vms:
        asked(memslot_addresses, kernel, vm.address)
        if vm.radix:
            asked(nested_guest_addresses, kernel, vm.address)


def _tables(kernel: KernelSpace, mutant: Mutant) -> None:
    for vm in mutant.before.vms:
        for root in (vm.pgtable, *(nested.shadow_pgtable for nested in vm.nested)):
            tree = pte.Root(kernel.physical(root), pte.PGD_BITS)
            collect_leaves(kernel.memory, tree).find(addresses([0, 1 << 40]))
            translate(kernel.memory, tree, addresses([0, 1 << 16, 0x1900000, (1 << 52) - 1]))


def _l1_tables(kernel: KernelSpace, mutant: Mutant) -> None:
    for vm in mutant.before.vms:
        mm = kernel.field("kvm", vm.address, "mm")
        guest = GuestSpace(kernel, kernel.field("mm_struct", mm, "pgd"), vm.memslots)
        for nested in vm.nested:
            root = pte.partition_root(nested.l1_gr_to_hr)
            if root is not None:
                collect_leaves(guest, root)


def _modules(kernel: KernelSpace, mutant: Mutant) -> None:
    found = find_modules(kernel, {"kvm", "kvm_hv"})
    for module in found.values():
        asked(module_symbols, kernel, module)
        asked(module_contents, kernel, module)
        asked(exported_symbol, kernel, module, "halt_poll_ns")
    asked(module_types, kernel)
    asked(require_radix, kernel)
    asked(vm_list, kernel)


def _memslots(kernel: KernelSpace, mutant: Mutant) -> None:
    collect(kernel, _vms(mutant))


def _partition(kernel: KernelSpace, mutant: Mutant) -> None:
    table = partition_table(kernel)
    for lpid in (0, 1, 4095, 1 << 20):
        asked(partition_entry, kernel, table, lpid)


def _whole(kernel: KernelSpace, mutant: Mutant) -> None:
    snapshot = collect(kernel, _vms(mutant))
    judgement = judge(snapshot)
    acquired = Acquired(
        snapshot, kernel.profile, Origin(target="x", read_path="x"), lambda: mutant.memory
    )
    check_json(acquired, judgement)
    vms_json(acquired)
    for lines in (
        check_report(acquired, judgement),
        rmap_report(snapshot, everything=False),
        vms_report(acquired),
        rmap_lines(snapshot),
    ):
        list(lines)


def _changes(data: bytes, chance: random.Random) -> bytes:
    """Change, add or drop changes."""
    rows = [data[at : at + CHANGE.size] for at in range(0, len(data), CHANGE.size)]
    for _ in range(1 + chance.randrange(3)):
        new = CHANGE.pack(
            chance.getrandbits(16), chance.randrange(WAYS), chance.getrandbits(8), _large(chance)
        )
        at = chance.randrange(len(rows) + 1)
        if rows and chance.random() < 0.4:
            rows[at : at + 1] = chance.choice(([], [new]))
        else:
            rows.insert(at, new)
    return b"".join(rows[-MOST_CHANGES:])


def _large(chance: random.Random) -> int:
    return chance.choice((chance.getrandbits(64), chance.getrandbits(16), chance.choice(EDGES)))


def _seeds() -> tuple[bytes, ...]:
    chance = random.Random(0)
    return (b"", *(_changes(b"", chance) for _ in range(8)))


def _target(walker: Walker, captures: Iterable[str]) -> Target:
    names = tuple(captures)

    @functools.cache
    def walk_on(name: str) -> _Walk:
        return _Walk(name, walker)

    def run(data: bytes) -> None:
        """Run a walker; the first byte of the input chooses the capture."""
        walk_on(names[(data[0] if data else 0) % len(names)])(data[1:])

    def mutate(data: bytes, chance: random.Random) -> bytes:
        first = chance.randrange(len(names)) if chance.random() < 0.2 or not data else data[0]
        return bytes([first]) + _changes(data[1:], chance)

    def seeds() -> tuple[bytes, ...]:
        return tuple(bytes([i]) + seed for i in range(len(names)) for seed in _seeds())

    return Target(seeds, run, mutate)


WALKERS = {
    "lists": _target(_lists, ["powernv9-two-vms-5.10-64k", "powernv9-two-vms"]),
    "rmap lists": _target(
        _rmaps, ["powernv9-singles", "powernv9-list-many-lpids-5.10-64k", "powernv9-zero-word"]
    ),
    "rings of hash rmaps": _target(_hash_rmaps, ["powernv9-hash", "powernv9-hash-5.10-64k"]),
    "rb tree, idr, arrays": _target(
        _containers, ["powernv9-memslots", "powernv9-two-vms", "powernv9-memslots-5.10-64k"]
    ),
    "radix tables": _target(_tables, ["powernv9-singles", "powernv9-stale-5.10-64k"]),
    "L1's tables": _target(_l1_tables, ["powernv9-singles", "powernv9-l1-sizes-6.12-64k"]),
    "modules": _target(_modules, ["powernv9-hash-5.10-64k", "powernv9-released"]),
    "partition table": _target(_partition, ["powernv9-released", "powernv9-stale-5.10-64k"]),
    "snapshot": _target(_memslots, ["powernv9-singles", "powernv9-stale-5.10-64k"]),
    "check and reports": _target(_whole, ["powernv9-singles", "powernv9-hash"]),
}
