"""Compare a snapshot with an expectation, which is read from a JSON file.

The file is an object with ``vms``, or one that has such an object under
``expected``, like the files that the lab writes next to its captures::

    {"vms": [{"memslots": [{"base_gfn": 0, "npages": 7424, "hva": 70367578161152}],
              "slots": {"0x20": ["0x20000000010000", "0x10000000010001"]},
              "leaves": ["1:0x10000", "2:0x10000"]}]}

``memslots`` identify the VM, by ``hva`` too if it is given.  ``slots``
has the words of every slot that is not empty, newest first; ``leaves`` the
present shadow leaves as LPID and L2 address.  A member that is missing
is not compared.  Numbers are JSON numbers, or strings such as ``"0x20"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inspector.errors import BadData
from inspector.kvm.snapshot import Part, Rmaps, Snapshot, Vm
from inspector.memory.numbers import addresses
from inspector.questions.changes import Compared, SlotChange
from inspector.questions.difference import slot_changes
from inspector.storage import DAMAGE, contents_of, parsed_json

__all__ = ["Departures", "Expected", "ExpectedVm", "Unexpected", "departures", "read_expected"]

COMPARED = (Part.RMAPS, Part.MEMSLOTS, Part.NESTED, Part.SHADOW)

EXPECTED_LIMIT = 1 << 28
"""Limit of an expectation in bytes; a list of a million entries has a tenth of it."""

L2Place = tuple[int, int]
"""LPID and L2 address of a shadow leaf."""


@dataclass(frozen=True)
class ExpectedVm:
    """What is expected of one VM; None for members that are not in the file."""

    memslots: tuple[tuple[int, int, int | None], ...]
    slots: Mapping[int, tuple[int, ...]] | None
    leaves: frozenset[L2Place] | None


@dataclass(frozen=True)
class Expected:
    """What is expected of a host."""

    source: str
    vms: tuple[ExpectedVm, ...]


@dataclass(frozen=True)
class Unexpected:
    """Where one VM is not as expected; ``vm`` is None if there is no such VM.

    In ``slots`` *before* is what was expected, and *after* what was found.
    """

    expected: ExpectedVm | None
    vm: Vm | None
    slots: tuple[SlotChange, ...] = ()
    missing: tuple[L2Place, ...] = ()
    unexpected: tuple[L2Place, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether the VM is as expected, as far as can be compared."""
        known = self.expected is not None and self.vm is not None
        return known and not (self.slots or self.missing or self.unexpected)


@dataclass(frozen=True)
class Departures(Compared[Unexpected]):
    """Where a host is not as expected."""

    expected: Expected = field(kw_only=True)


def read_expected(path: Path) -> Expected:
    """Read an expectation.

    Raises:
        BadData: the file is not an expectation.
    """
    try:
        raw = parsed_json(contents_of(path, EXPECTED_LIMIT))
        if "vms" not in raw:
            raw = raw["expected"]
        if not isinstance(raw["vms"], list):
            raise TypeError("its vms are not a list")
        return Expected(str(path), tuple(_expected_vm(vm) for vm in raw["vms"]))
    except KeyError as error:
        raise BadData(f"{path} is not an expectation: it has no {error}") from error
    except DAMAGE as error:
        raise BadData(f"{path} is not an expectation: {error}") from error


def _expected_vm(raw: Mapping[str, Any]) -> ExpectedVm:
    slots = raw.get("slots")
    leaves = raw.get("leaves")
    if leaves is not None:
        # orphans, the leaves whose page is gone, are present in the shadow table too
        leaves = frozenset(_place(text) for text in [*leaves, *raw.get("orphans", ())])
    return ExpectedVm(
        tuple(
            (
                _number(slot["base_gfn"]),
                _number(slot["npages"]),
                _number(slot["hva"]) if "hva" in slot else None,
            )
            for slot in raw["memslots"]
        ),
        None
        if slots is None
        else {_number(gfn): tuple(_number(word) for word in words) for gfn, words in slots.items()},
        leaves,
    )


def _number(value: int | str) -> int:
    number = int(value, 0) if isinstance(value, str) else value
    if not isinstance(number, int) or not 0 <= number < (1 << 64):
        raise ValueError(f"{value!r} is not a number of 64 bits")
    return number


def _place(text: str) -> L2Place:
    lpid, _, address = text.partition(":")
    return _number(lpid), _number(address)


def departures(expected: Expected, snapshot: Snapshot) -> Departures:
    """Return where a snapshot is not as expected."""
    left = list(snapshot.vms)
    found = []
    for wanted in expected.vms:
        vm = next((vm for vm in left if _is(vm, wanted)), None)
        if vm is not None:
            left.remove(vm)
            found.append(_departure(wanted, vm))
        else:
            found.append(Unexpected(wanted, None))
    found += [Unexpected(None, vm) for vm in left]
    return Departures(
        tuple(found), tuple(f"not read: {gap.text}" for gap in snapshot.gaps), expected=expected
    )


def _is(vm: Vm, wanted: ExpectedVm) -> bool:
    memslots = {(slot.base_gfn, slot.npages): slot.userspace_addr for slot in vm.memslots}
    return len(memslots) == len(wanted.memslots) and all(
        (base, pages) in memslots and hva in (None, memslots[base, pages])
        for base, pages, hva in wanted.memslots
    )


def _departure(wanted: ExpectedVm, vm: Vm) -> Unexpected:
    slots: tuple[SlotChange, ...] = ()
    if wanted.slots is not None and vm.radix:
        slots = tuple(slot_changes(_rmaps(wanted.slots), vm.rmaps))
    missing: set[L2Place] = set()
    unexpected: set[L2Place] = set()
    if wanted.leaves is not None:
        present = {
            (nested.lpid, address)
            for nested in vm.nested
            for address in nested.shadow.address.tolist()
        }
        unread = {nested.lpid for nested in vm.nested if nested.shadow.has_holes}
        unread |= set(vm.unread_guests or ())
        missing = {
            place
            for place in wanted.leaves - present
            if vm.unread_guests is not None and place[0] not in unread
        }
        unexpected = present - wanted.leaves
    return Unexpected(
        wanted,
        vm,
        slots,
        tuple(sorted(missing)),
        tuple(sorted(unexpected)),
        tuple(_unknown(vm)),
    )


def _unknown(vm: Vm) -> list[str]:
    locked = ["mmu_lock was held: the state may be half way through a change"] if vm.locked else []
    return locked + [f"not read: {gap.text}" for gap in vm.gaps if gap.part in COMPARED]


def _rmaps(slots: Mapping[int, tuple[int, ...]]) -> Rmaps:
    """Return expected slots in the form of slots that were read, with 0 for their addresses."""
    gfns = sorted(gfn for gfn, words in slots.items() if words)
    words = [word for gfn in gfns for word in slots[gfn]]
    lengths = [len(slots[gfn]) for gfn in gfns]
    nowhere = addresses([0] * len(words))
    return Rmaps(
        memslot=np.zeros(len(gfns), np.int64),
        gfn=addresses(gfns),
        where=addresses([0] * len(gfns)),
        head=addresses([0] * len(gfns)),
        start=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        word=addresses(words),
        node=nowhere,
        place=nowhere,
    )
