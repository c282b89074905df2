"""The parts of a difference between two snapshots."""

from __future__ import annotations

import enum
from collections.abc import Sized
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from inspector.kvm.snapshot import HashSlot, Vm
from inspector.model.vm import EntryState, Leaf

__all__ = [
    "Change",
    "Compared",
    "Difference",
    "FieldChange",
    "HashChange",
    "LeafChange",
    "LeafKind",
    "SlotChange",
    "TableName",
    "Turned",
    "VmDifference",
]


class Change(enum.Enum):
    """Whether a VM, a memslot or a nested guest came, went or was kept."""

    CAME = "came"
    GONE = "gone"
    KEPT = "kept"


class TableName(enum.Enum):
    """Which table a leaf is in."""

    HOST = "L0's table"
    SHADOW = "shadow table"
    L1 = "L1's table"


class LeafKind(enum.Enum):
    """How a leaf changed; one that moved may have changed its size and its bits too."""

    APPEARED = "appeared"
    VANISHED = "vanished"
    MOVED = "moved"
    RESIZED = "resized"
    BITS = "changed bits"


class FieldChange(NamedTuple):
    """A member of a structure before and after.

    ``owner`` is ``"VM"``, ``"memslot N"`` or ``"nested guest N"``.  If the
    owner came or went, ``name`` is empty.
    """

    owner: str
    name: str
    before: int | None
    after: int | None
    change: Change = Change.KEPT


class SlotChange(NamedTuple):
    """An rmap slot whose entries changed.

    ``added`` and ``gone`` are entries without the single-entry bit.  A slot
    with neither has the same entries in another order.
    """

    gfn: int
    before: int
    after: int
    added: tuple[int, ...]
    gone: tuple[int, ...]


class Turned(NamedTuple):
    """An entry that stayed in its slot and whose state has changed."""

    gfn: int
    word: int
    before: EntryState
    after: EntryState


class HashChange(NamedTuple):
    """The rmap word of a hash guest, None where it was or is zero."""

    gfn: int
    before: HashSlot | None
    after: HashSlot | None


class LeafChange(NamedTuple):
    """A leaf before and after; ``lpid`` is the L1 LPID of the nested guest, None for L0's table."""

    table: TableName
    lpid: int | None
    address: int
    before: Leaf | None
    after: Leaf | None

    @property
    def kind(self) -> LeafKind:
        """How it changed."""
        if self.before is None:
            return LeafKind.APPEARED
        if self.after is None:
            return LeafKind.VANISHED
        if self.before.frame != self.after.frame:
            return LeafKind.MOVED
        if self.before.shift != self.after.shift:
            return LeafKind.RESIZED
        return LeafKind.BITS


@dataclass(frozen=True, kw_only=True)
class VmDifference:
    """What is different in one VM; ``unknown`` says what could not be compared, and why."""

    change: Change
    before: Vm | None
    after: Vm | None
    fields: tuple[FieldChange, ...] = ()
    slots: tuple[SlotChange, ...] = ()
    turned: tuple[Turned, ...] = ()
    leaves: tuple[LeafChange, ...] = ()
    hashed: tuple[HashChange, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def vm(self) -> Vm:
        """The VM in its last known state."""
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def same(self) -> bool:
        """Whether nothing of it is different, as far as can be compared."""
        return self.change is Change.KEPT and not (
            self.fields or self.slots or self.turned or self.leaves or self.hashed
        )


class ComparedVm(Protocol):
    """One VM of a comparison."""

    @property
    def same(self) -> bool:
        """Whether nothing is different, as far as can be compared."""

    @property
    def unknown(self) -> Sized:
        """What could not be compared."""


V = TypeVar("V", bound=ComparedVm, covariant=True)


@dataclass(frozen=True)
class Compared(Generic[V]):
    """The result of a comparison, VM by VM; ``notes`` concern the host as a whole."""

    vms: tuple[V, ...]
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing is different, as far as can be compared."""
        return all(vm.same for vm in self.vms)

    @property
    def whole(self) -> bool:
        """Whether everything could be compared."""
        return not self.notes and not any(vm.unknown for vm in self.vms)


class Difference(Compared[VmDifference]):
    """What is different between two states."""
