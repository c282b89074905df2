"""The model follows a recording, and its end is compared with a snapshot.

Every slot is compared as it is stored in memory: the word of the slot, and the
link and the word of every node of its list, in order.  The rmap arrays, the
nested guests, and the leaves of their shadow tables are compared too, without R
and C, which hardware sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from inspector.errors import BadData, TargetNotSupported
from inspector.following.calls import CallRecording
from inspector.kvm.snapshot import Nested, Part, Slot, Snapshot
from inspector.model.events import Array, Call, Divergence, SlotWords, slot_words
from inspector.model.follow import SAME_LEAF, Follower
from inspector.model.parts import Guest
from inspector.model.vm import Leaf, Table
from inspector.progress import Doing, Progress, untold

__all__ = ["Disagreement", "Replayed", "follower_of", "replay"]

EVERY = 1 << 10
"""Progress is reported after so many events."""

COMPARED = (Part.MEMSLOTS, Part.RMAPS, Part.NESTED, Part.SHADOW)
"""The parts that a target must have to be compared."""

Leaves = dict[int, tuple[int, int]]
"""The leaves of a table by address: the entry without R and C, and log2 of the size."""


@dataclass(frozen=True)
class Disagreement:
    """A difference between the model and the target at the end."""

    what: str
    model: SlotWords | str
    target: SlotWords | str


@dataclass(frozen=True)
class Replayed:
    """The result of a replay.

    ``calls`` counts the calls that were followed, by function.  ``equal_after``
    is the number of the call after which the model is equal to the target, None
    if it never is; ``beyond`` is how many calls were recorded after that one,
    while the target still ran.
    """

    calls: Counter[str]
    divergence: Divergence | None
    equal_after: int | None
    beyond: int
    differences: tuple[Disagreement, ...]
    slots: int
    entries: int
    leaves: int

    @property
    def same(self) -> bool:
        """Whether kernel and model agreed at every call and at the end."""
        return self.divergence is None and self.equal_after is not None


def replay(recording: CallRecording, snapshot: Snapshot, progress: Progress = untold) -> Replayed:
    """Follow a recording, and compare its end with a snapshot.

    Raises:
        BadData: the recording is damaged.
        TargetNotSupported: the snapshot is of another kernel, or is missing a
            part that is compared.
    """
    _see_that_it_fits(recording, snapshot)
    target = _Target(snapshot)
    run = _Run(recording, target, progress)
    divergence = run.follow()
    if divergence is not None:
        return run.result(divergence, None, 0, ())
    if not run.moments or run.moments[-1] != run.events:
        return _earlier(run, recording, target, progress)
    differences = tuple(target.differences(run.follower))
    if differences:
        return _earlier(run, recording, target, progress)
    return run.result(None, run.last, 0, ())


def _earlier(run: _Run, recording: CallRecording, target: _Target, progress: Progress) -> Replayed:
    """Find out whether the target was copied before the recording ended."""
    again = _Run(recording, target, progress)
    # The first pass has compared all slots after each event; only where they were equal is it
    # worth to compare the guests and their shadow tables too.
    moments = set(run.moments)
    equal = None
    for _ in again.steps():
        if again.events in moments and target.equals(again.follower):
            equal = again.last
    if equal is None:
        return run.result(None, None, 0, tuple(target.differences(run.follower)))
    return run.result(None, equal, run.last - equal, ())


def follower_of(snapshot: Snapshot, *, tables: bool) -> Follower:
    """Return a follower that begins with the state of a snapshot.

    Raises:
        TargetNotSupported: the snapshot has a list without an end, which the
            model cannot represent.
    """
    follower = Follower(snapshot.page_shift, tables=tables)
    for vm in snapshot.vms:
        for memslot in vm.memslots:
            if memslot.rmap:
                array = Array(vm.address, memslot.rmap, memslot.base_gfn, memslot.npages)
                follower.add_array(array)
        for slot in vm.rmaps:
            if not _is_whole(slot):
                raise TargetNotSupported(
                    f"the list of the slot of gfn {slot.gfn:#x} at {slot.where:#x} has no end, so "
                    "the model cannot follow it; 'inspector check' says what is wrong"
                )
            nodes = [int(node) for node in slot.nodes if node]
            follower.add_slot(slot.where, [int(word) for word in slot.words], nodes)
        for nested in vm.nested:
            guest = Guest(nested.lpid, nested.shadow_lpid, shadow=_table(nested))
            follower.add_guest(vm.address, guest)
    return follower


class _Run:
    """One pass through a recording."""

    def __init__(self, recording: CallRecording, target: _Target, progress: Progress) -> None:
        self.follower = Follower(recording.page_shift)
        self.calls: Counter[str] = Counter()
        self.events = self.last = 0
        self.moments: list[int] = []
        """The events after which all slots equal the target's and no call is under way."""
        self._recording, self._target, self._progress = recording, target, progress

    def follow(self) -> Divergence | None:
        """Follow to the end, or to the first divergence of kernel and model."""
        # The slots that differ from the target.  The model begins empty; later, only the slots
        # that changed are compared.
        differing = set(self._target.slots)
        for divergence in self.steps():
            if divergence is not None:
                return divergence
            for place in self.follower.changed:
                if self._target.slots.get(place, (0,)) == self.follower.words(place):
                    differing.discard(place)
                else:
                    differing.add(place)
            self.follower.changed.clear()
            if not differing and not self.follower.busy:
                self.moments.append(self.events)
        return None

    def steps(self) -> Iterator[Divergence | None]:
        """Follow event by event."""
        for event in self._recording.events():
            if self.events % EVERY == 0:
                self._progress(Doing.FOLLOWING, f"number {event.number}")
            self.events += 1
            self.last = max(self.last, event.number)
            if isinstance(event, Call):
                self.calls[event.function] += 1
            try:
                yield self.follower.follow(event)
            except (KeyError, IndexError, ValueError) as error:
                raise BadData(
                    f"call {event.number} of the recording {self._recording.name} is missing a "
                    f"word or has an impossible one: {error!r}"
                ) from error

    def result(
        self,
        divergence: Divergence | None,
        equal_after: int | None,
        beyond: int,
        differences: tuple[Disagreement, ...],
    ) -> Replayed:
        target = self._target
        sizes = (target.slot_count, target.entry_count, target.leaf_count)
        return Replayed(self.calls, divergence, equal_after, beyond, differences, *sizes)


class _Target:
    """A snapshot in the form that the model uses."""

    def __init__(self, snapshot: Snapshot) -> None:
        radix = [vm for vm in snapshot.vms if vm.radix]
        self.slots = {slot.where: _as_it_stands(slot) for vm in radix for slot in vm.rmaps}
        self.arrays = {
            Array(vm.address, memslot.rmap, memslot.base_gfn, memslot.npages)
            for vm in radix
            for memslot in vm.memslots
            if memslot.rmap
        }
        self.guests = {
            (vm.address, nested.lpid): (nested.shadow_lpid, _leaves(_table(nested)))
            for vm in radix
            for nested in vm.nested
        }
        self._vms = {vm.address for vm in radix}
        self.slot_count = len(self.slots)
        self.entry_count = sum(vm.rmaps.word.size for vm in radix)
        self.leaf_count = sum(len(leaves) for _, leaves in self.guests.values())

    def equals(self, follower: Follower) -> bool:
        """Say whether the model is equal to the target."""
        return next(self.differences(follower), None) is None

    def differences(self, follower: Follower) -> Iterator[Disagreement]:
        """Yield every difference between the model and the target."""
        yield from self._of_slots(follower)
        modelled = {array for array in follower.arrays.values() if array.vm in self._vms}
        for array in sorted(self.arrays ^ modelled):
            texts = f"{array.npages} pages from gfn {array.base_gfn:#x}", "none"
            expected, found = texts if array in modelled else texts[::-1]
            yield Disagreement(f"the rmap array at {array.address:#x}", expected, found)
        yield from self._of_guests(follower)

    def _of_slots(self, follower: Follower) -> Iterator[Disagreement]:
        for place in sorted(self.slots.keys() | follower.slots.keys()):
            expected, found = follower.words(place), self.slots.get(place, (0,))
            array = follower.array_of(place)
            if expected != found and (array is None or array.vm in self._vms):
                gfn = follower.gfn_of(place)
                named = "" if gfn is None else f" (gfn {gfn:#x})"
                yield Disagreement(f"the slot at {place:#x}{named}", expected, found)

    def _of_guests(self, follower: Follower) -> Iterator[Disagreement]:
        guests = {
            (address, lpid): (guest.shadow_lpid, _leaves(guest.shadow))
            for address, vm in follower.vms.items()
            for lpid, guest in vm.guests.items()
            if address in self._vms
        }
        for key in sorted(self.guests.keys() | guests.keys()):
            name = f"nested guest {key[1]} of the VM at {key[0]:#x}"
            if key not in guests or key not in self.guests:
                there = "in the model" if key in guests else "in the target"
                yield Disagreement(name, *(("there", "none") if key in guests else ("none", there)))
                continue
            (expected_lpid, expected), (found_lpid, found) = guests[key], self.guests[key]
            if expected_lpid != found_lpid:
                yield Disagreement(f"{name}: shadow LPID", str(expected_lpid), str(found_lpid))
            for address in sorted(expected.keys() | found.keys()):
                if expected.get(address) != found.get(address):
                    where = f"{name}: shadow leaf at {address:#x}"
                    yield Disagreement(where, _leaf(expected, address), _leaf(found, address))


def _see_that_it_fits(recording: CallRecording, snapshot: Snapshot) -> None:
    """Refuse a snapshot of another kernel, or one that is missing a part that is compared."""
    if recording.release != snapshot.release or recording.page_shift != snapshot.page_shift:
        raise TargetNotSupported(
            f"the recording {recording.name} is of Linux {recording.release}, the target runs "
            f"{snapshot.release}; give a target that was copied at the end of the recording"
        )
    missing = [gap.text for vm in snapshot.vms for gap in vm.gaps if gap.part in COMPARED]
    if missing:
        raise TargetNotSupported(
            f"the target is missing a part that has to be compared: {missing[0]}"
        )


def _as_it_stands(slot: Slot) -> SlotWords:
    words, nodes = slot.words.tolist(), slot.nodes.tolist()
    if not _is_whole(slot):
        # The list has no end.  The model never has None, so no slot of the model equals this.
        return (*slot_words([*words, 0], nodes), None) if words else (slot.head, None)
    return slot_words(words, nodes[:-1])


def _is_whole(slot: Slot) -> bool:
    """Say whether a slot ends with an entry."""
    return bool(slot.words.size) and not slot.nodes[-1]


def _table(nested: Nested) -> Table:
    shadow = nested.shadow
    rows = zip(shadow.address.tolist(), shadow.entry.tolist(), shadow.shift.tolist(), strict=True)
    return Table({address: Leaf(address, entry, shift) for address, entry, shift in rows})


def _leaves(table: Table) -> Leaves:
    return {leaf.address: (leaf.entry & SAME_LEAF, leaf.shift) for leaf in table.leaves.values()}


def _leaf(leaves: Leaves, address: int) -> str:
    if address not in leaves:
        return "none"
    entry, shift = leaves[address]
    return f"{entry:#018x}, {1 << shift:#x} bytes"
