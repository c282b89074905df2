"""The model follows a kernel call by call, and says where the two first differ.

Each call has a function of the kernel, its arguments, and the words that were
in memory before and after it.  Before the call, the words must equal those of
the model; then the model does what the function does; after the call, the words
must agree again.  The calls that a function has to make in turn must be made,
and no others: an insertion for a new shadow leaf, a removal for a leaf of L0's,
and the removal of each shadow leaf that such a removal leads to.

A slot is known by its kernel address, so a slot that the kernel takes outside
of its array is followed too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from inspector import encoding, pte
from inspector.model.departures import AS_IT_IS
from inspector.model.events import Array, Call, Divergence, Return, SlotWords, is_cut, slot_words
from inspector.model.parts import Guest
from inspector.model.removal import led_to
from inspector.model.rules import Rules
from inspector.model.slot import ModelSlot
from inspector.model.state import PMD_SHIFT, PUD_SHIFT
from inspector.model.vm import Leaf, Table

__all__ = ["SAME_LEAF", "FollowedVm", "Follower"]

WORD = 8
WORD_MASK = (1 << 64) - 1
SAME_LEAF = pte.VALID | pte.LEAF | pte.RPN_MASK
"""The bits of a leaf that say where it leads; hardware sets R and C on its own."""


@dataclass
class FollowedVm:
    """One VM: L0's table for it, and its nested guests by L1 LPID and by shadow LPID."""

    host: Table = field(default_factory=Table)
    guests: dict[int, Guest] = field(default_factory=dict)
    by_shadow: dict[int, Guest] = field(default_factory=dict)


class _Open:
    """A call that has not returned, and the calls that it has made or still has to make.

    ``leaves`` are the shadow leaves that a removal still has to clear, in the
    order in which the kernel does so.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.was_present = False
        self.fulfilled = False
        self.leaves: list[tuple[Guest, Leaf]] = []


class _Diverged(Exception):  # noqa: N818
    def __init__(
        self,
        what: str,
        expected: SlotWords | str,
        found: SlotWords | str,
        slot: int | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.expected, self.found, self.slot = what, expected, found, slot


class Follower:
    """Follows a kernel from the calls it makes.

    Args:
        page_shift: log2 of the host's page size.
        tables: whether the events include the calls that change the tables,
            and not only insertions and removals.
        rules: the reading of the specification.

    ``changed`` collects the addresses of the slots that changed; the caller may
    empty it after reading it.
    """

    def __init__(self, page_shift: int, *, tables: bool = True, rules: Rules = AS_IT_IS) -> None:
        self.page_shift = page_shift
        self.vms: dict[int, FollowedVm] = {}
        # By the address of a slot: the slot, and the addresses of its nodes, the newest first.
        self.slots: dict[int, ModelSlot] = {}
        self.nodes: dict[int, list[int]] = {}
        self.arrays: dict[int, Array] = {}
        self.changed: set[int] = set()
        # The addresses of the arrays, sorted, to find the array of a slot by bisection.
        self._order: list[int] = []
        self._tables = tables
        self._rules = rules
        # By number, the calls that have not returned.
        self._open: dict[int, _Open] = {}
        # By the key of a leaf (see _key), the number of the last call that cleared it.
        self._touched: dict[tuple[int, int, int], int] = {}

    # --- the state at the beginning ---

    def add_array(self, array: Array) -> None:
        """Add an rmap array; an array of another VM at the same address is forgotten."""
        if self.arrays.get(array.address, array)[:2] != array[:2]:
            self._drop_array(array.address)
        self.arrays[array.address] = array
        self._order = sorted(self.arrays)

    def add_slot(self, place: int, words: Sequence[int], nodes: Sequence[int]) -> None:
        """Add a slot that is not empty; ``nodes`` are the addresses of its list nodes."""
        self.slots[place] = ModelSlot(words)
        self.nodes[place] = list(nodes)

    def add_guest(self, vm: int, guest: Guest) -> None:
        """Add a nested guest with its shadow table."""
        state = self._vm(vm)
        before = state.guests.get(guest.l1_lpid)
        if before is not None:
            state.by_shadow.pop(before.shadow_lpid, None)
        state.guests[guest.l1_lpid] = state.by_shadow[guest.shadow_lpid] = guest

    def words(self, place: int) -> SlotWords:
        """Return a slot as it must be stored in memory."""
        slot = self.slots.get(place)
        return slot_words(slot.words, self.nodes[place]) if slot and slot.words else (0,)

    def array_of(self, place: int) -> Array | None:
        """Return the rmap array that a slot's address lies in."""
        index = bisect_right(self._order, place) - 1
        if index < 0:
            return None
        array = self.arrays[self._order[index]]
        return array if place < array.address + WORD * array.npages else None

    def gfn_of(self, place: int) -> int | None:
        """Return the gfn of the slot at an address, None if it lies in no array."""
        array = self.array_of(place)
        return None if array is None else array.base_gfn + (place - array.address) // WORD

    # --- calls ---

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._open)

    def follow(self, event: Call | Return) -> Divergence | None:
        """Follow the next event; return the divergence of kernel and model, if there is one.

        Raises:
            KeyError, IndexError: the event is missing a word or an argument.
        """
        if isinstance(event, Call):
            call, before = event, True
            self._open[call.number] = _Open(call)
        else:
            opened = self._open.get(event.number)
            if opened is None:
                return None
            call, before = opened.call, False
        step = _STEPS.get((call.function, before))
        try:
            if before:
                self._compare(event.slots, "before the call")
            if step is not None:
                step(self, self._open[call.number], event)
            if not before:
                self._compare(event.slots, "after the call")
        except _Diverged as found:
            return Divergence(
                number=call.number,
                function=call.function,
                arguments=call.arguments,
                what=found.what,
                expected=found.expected,
                found=found.found,
                slot=found.slot,
                gfn=None if found.slot is None else self.gfn_of(found.slot),
            )
        finally:
            if not before:
                del self._open[call.number]
        return None

    def _compare(self, found: Mapping[int, SlotWords], when: str) -> None:
        for place, words in found.items():
            expected = self.words(place)
            # A list that was cut off is compared as far as it was recorded.
            if words != expected[: len(words)] or not (
                len(words) == len(expected) or is_cut(words)
            ):
                raise _Diverged(f"the slot {when}", expected, words, place)

    def _vm(self, address: int) -> FollowedVm:
        return self.vms.setdefault(address, FollowedVm())

    def _parent(self, opened: _Open, function: str) -> _Open | None:
        parent = self._open.get(opened.call.parent or 0)
        return parent if parent and parent.call.function == function else None

    def _drop_array(self, address: int) -> None:
        array = self.arrays.pop(address, None)
        if array is not None:
            for place in _places(address, array.npages, self.slots.keys()):
                self._empty(place)
            self._order = sorted(self.arrays)

    def _empty(self, place: int) -> Sequence[int]:
        slot = self.slots.pop(place, None)
        self.nodes.pop(place, None)
        if slot is None:
            return ()
        self.changed.add(place)
        return slot.remove_all(self._rules.words_met)

    # --- insertion ---

    def _insert(self, opened: _Open, event: Call | Return) -> None:
        place, word, node = opened.call.arguments[1], *_known(event, "word", "node")
        create = self._parent(opened, "kvmppc_create_pte")
        if create is not None:
            self._check_insertion(create, place, word)
        elif self._tables:
            raise _Diverged(
                "an insertion", "one that kvmppc_create_pte makes", "one without that caller"
            )
        slot = self.slots.setdefault(place, ModelSlot())
        entry = encoding.decode(word)
        had = len(slot.words)
        if not slot.insert(entry.lpid, entry.gpa, self._rules.words_met):
            return
        self.nodes.setdefault(place, [])
        if had:
            self.nodes[place].insert(0, node)
        self.changed.add(place)

    def _check_insertion(self, create: _Open, place: int, word: int) -> None:
        wanted_place, wanted_word = create.call.arguments[7], create.call.values["word"]
        if place != wanted_place or word != wanted_word:
            raise _Diverged(
                "the entry that is inserted",
                f"{wanted_word or 0:#018x} in the slot at {wanted_place:#x}",
                f"{word:#018x} in the slot at {place:#x}",
            )
        vm, guest, leaf = self._created(create.call)
        if guest is None:
            return
        expected = encoding.encode(guest.l1_lpid, leaf.address & encoding.GPA_MASK)
        if word != expected:
            raise _Diverged(
                "the word that is inserted",
                f"{expected:#018x} for L2 {guest.l1_lpid}:{leaf.address:#x}",
                f"{word:#018x}",
            )
        present = guest.shadow.at(leaf.address)
        if present is not None and present.shift == leaf.shift:
            raise _Diverged(
                "an insertion",
                f"none: the shadow table of nested guest {guest.l1_lpid} has "
                f"{present.entry:#018x} at {present.address:#x} already",
                f"{word:#018x}",
            )
        self._check_slot(vm, create.call, leaf, place)
        guest.shadow.put(leaf)
        create.fulfilled = True

    def _check_slot(self, vm: FollowedVm, create: Call, leaf: Leaf, place: int) -> None:
        """Check that the slot is that of the first page of L0's leaf for the host page."""
        gfn = self.gfn_of(place)
        if gfn is None:
            return
        host = vm.host.at(gfn << self.page_shift)
        # If L0's leaf was cleared after the call began, it is not known which leaf the call saw.
        touched = 0 if host is None else self._touched.get((create.arguments[0], 0, host.address))
        if host is None or (touched or 0) > create.number:
            return
        first = host.address >> self.page_shift
        if first != gfn or not 0 <= leaf.frame - host.frame < host.size:
            backing = [leaf_.address >> self.page_shift for leaf_ in vm.host.onto(leaf.frame)]
            raise _Diverged(
                "the slot that an entry is put into",
                f"that of gfn {', '.join(f'{b:#x}' for b in backing) or 'none'}, the first page "
                f"of L0's leaf for host page {leaf.frame:#x}",
                f"that of gfn {gfn:#x}",
            )

    # --- removal ---

    def _remove_range(self, opened: _Open, event: Call | Return) -> None:
        vm, _, gpa, hpa, size = opened.call.arguments[:5]
        base_gfn, rmap = _known(event, "base_gfn", "rmap")
        unmap = self._parent(opened, "kvmppc_unmap_pte")
        if unmap is not None:
            self._check_removal(unmap, opened.call)
        elif self._tables:
            raise _Diverged(
                "a removal", "one that kvmppc_unmap_pte makes", "one without that caller"
            )
        # The bits of a frame above the size of the page.
        mask = pte.RPN_MASK & -size
        # Several entries may lead to one shadow leaf; the kernel clears it at the first of them.
        gone: set[tuple[int, int]] = set()
        first = (gpa >> self.page_shift) - base_gfn
        known = self.slots.keys() | event.slots.keys()
        for place in _places(rmap + WORD * first, size >> self.page_shift, known):
            # The event has all slots of the range that are not empty, so any other slot is 0.
            if place not in event.slots and self.words(place) != (0,):
                raise _Diverged("the slot before the call", self.words(place), (0,), place)
            for word in self._empty(place):
                found = led_to(self._vm(vm).guests, word, hpa & mask, mask)
                if found is not None:
                    key = found[0].shadow_lpid, found[1].address
                    if key not in gone:
                        gone.add(key)
                        opened.leaves.append(found)

    def _check_removal(self, unmap: _Open, call: Call) -> None:
        entry, gpa, size = self._unmapped(unmap.call)
        expected = gpa & -size, entry & pte.RPN_MASK, size
        if call.arguments[2:5] != expected:
            raise _Diverged(
                "the range that is removed",
                "L1 {:#x}, host page {:#x}, {:#x} bytes".format(*expected),
                "L1 {:#x}, host page {:#x}, {:#x} bytes".format(*call.arguments[2:5]),
            )
        unmap.fulfilled = True

    def _removed(self, opened: _Open, event: Call | Return) -> None:
        if self._tables and opened.leaves:
            guest, leaf = opened.leaves[0]
            raise _Diverged(
                "the shadow leaves that are removed",
                f"{leaf.entry:#018x} of nested guest {guest.l1_lpid} at {leaf.address:#x} too",
                "it is not removed",
            )

    # --- tables ---

    def _created(self, call: Call) -> tuple[FollowedVm, Guest | None, Leaf]:
        """Return the VM, the nested guest unless the table is L0's own, and the new leaf."""
        vm, _, raw, gpa, level, _, lpid = call.arguments[:7]
        shift = (self.page_shift, PMD_SHIFT, PUD_SHIFT)[level]
        state = self._vm(vm)
        leaf = Leaf(gpa & -(1 << shift), _entry(raw), shift)
        return state, state.by_shadow.get(lpid), leaf

    def _table(self, call: Call, lpid: int) -> Table | None:
        """Return L0's table or a shadow table by its hardware LPID, None if it is not known."""
        state = self._vm(call.arguments[0])
        if lpid == call.values["host_lpid"]:
            return state.host
        guest = state.by_shadow.get(lpid)
        return guest.shadow if guest else None

    def _key(self, call: Call, lpid: int, address: int) -> tuple[int, int, int]:
        """Return VM, shadow LPID (0 for L0's table) and address of a leaf, for ``_touched``."""
        return call.arguments[0], 0 if lpid == call.values["host_lpid"] else lpid, address

    def _create(self, opened: _Open, event: Call | Return) -> None:
        call = opened.call
        leaf = self._created(call)[2]
        table = self._table(call, call.arguments[6])
        opened.was_present = table is not None and _same(table.at(leaf.address), leaf)

    def _after_create(self, opened: _Open, event: Call | Return) -> None:
        call = opened.call
        if not isinstance(event, Return) or event.result or opened.fulfilled:
            return
        _, guest, leaf = self._created(call)
        lpid = call.arguments[6]
        table = self._table(call, lpid)
        if table is None:
            return
        touched = self._touched.get(self._key(call, lpid, leaf.address), 0) > call.number
        present = table.at(leaf.address)
        if present is not None and _same(present, leaf):
            table.put(present._replace(entry=present.entry | leaf.entry))
        elif lpid == call.values["host_lpid"]:
            if not touched:
                table.put(leaf)
        elif call.arguments[7] and guest and not (opened.was_present or touched):
            raise _Diverged(
                "the insertion for a new shadow leaf",
                f"{call.values['word'] or 0:#018x} in the slot at {call.arguments[7]:#x}"
                f"{self._named(call.arguments[7])}",
                "none",
            )

    def _named(self, place: int) -> str:
        gfn = self.gfn_of(place)
        return "" if gfn is None else f" (gfn {gfn:#x})"

    def _unmapped(self, call: Call) -> tuple[int, int, int]:
        """Return entry, address and size of the leaf that kvmppc_unmap_pte clears.

        Raises:
            ValueError: the size is impossible.
        """
        gpa, shift = call.arguments[2:4]
        if shift > pte.TREE_BITS:
            raise ValueError(f"a page of 2^{shift} bytes")
        (raw,) = _known(call, "pte")
        return _entry(raw), gpa, 1 << (shift or self.page_shift)

    def _unmap(self, opened: _Open, event: Call | Return) -> None:
        call = opened.call
        lpid = call.arguments[5]
        table = self._table(call, lpid)
        entry, gpa, size = self._unmapped(call)
        leaf = table.at(gpa) if table else None
        self._touched[self._key(call, lpid, gpa & -size)] = call.number
        removal = self._parent(opened, "kvmhv_remove_nest_rmap_range")
        if removal is not None:
            self._check_led_to(removal, lpid, gpa)
        if table is None:
            return
        if leaf is None:
            if table is not self._vm(call.arguments[0]).host:
                raise _Diverged(
                    "the shadow leaf that is removed", "none is there", f"{entry:#018x}"
                )
            return
        if (leaf.entry ^ entry) & SAME_LEAF or leaf.size != size:
            raise _Diverged(
                "the leaf that is removed",
                f"{leaf.entry:#018x} at {leaf.address:#x}, {leaf.size:#x} bytes",
                f"{entry:#018x} at {gpa & -size:#x}, {size:#x} bytes",
            )
        table.drop(leaf)

    def _check_led_to(self, removal: _Open, lpid: int, gpa: int) -> None:
        if removal.leaves:
            guest, leaf = removal.leaves[0]
            if guest.shadow_lpid == lpid and 0 <= gpa - leaf.address < leaf.size:
                removal.leaves.pop(0)
                return
            expected = f"that of nested guest {guest.l1_lpid} at {leaf.address:#x}"
        else:
            expected = "no further leaf"
        raise _Diverged(
            "the shadow leaf that a removal leads to", expected, f"that of LPID {lpid} at {gpa:#x}"
        )

    def _after_unmap(self, opened: _Open, event: Call | Return) -> None:
        call = opened.call
        if call.arguments[5] != call.values["host_lpid"] or opened.fulfilled:
            return
        entry, gpa, size = self._unmapped(call)
        gfn = gpa >> self.page_shift
        arrays = [array for array in self.arrays.values() if array.vm == call.arguments[0]]
        if call.arguments[4] or any(0 <= gfn - a.base_gfn < a.npages for a in arrays):
            raise _Diverged(
                "the removal for a leaf of L0's that is unmapped",
                f"L1 {gpa & -size:#x}, host page {entry & pte.RPN_MASK:#x}, {size:#x} bytes",
                "none",
            )

    def _free_table(self, opened: _Open, event: Call | Return) -> None:
        vm, _, lpid = opened.call.arguments[:3]
        table = self._table(opened.call, lpid)
        if table is not None:
            table.leaves.clear()
        if self._parent(opened, "kvmhv_release_nested") is not None:
            guest = self._vm(vm).by_shadow.pop(lpid, None)
            if guest is not None:
                del self._vm(vm).guests[guest.l1_lpid]

    # --- guests and memslots ---

    def _got_nested(self, opened: _Open, event: Call | Return) -> None:
        if not isinstance(event, Return) or not event.result:
            return
        vm, asked = opened.call.arguments[:2]
        l1_lpid, shadow_lpid = _known(event, "l1_lpid", "shadow_lpid")
        if l1_lpid != (asked & 0xFFFFFFFF):
            raise _Diverged("the nested guest that is found", f"LPID {asked}", f"LPID {l1_lpid}")
        present = self._vm(vm).guests.get(l1_lpid)
        if present is None or present.shadow_lpid != shadow_lpid:
            self.add_guest(vm, Guest(l1_lpid, shadow_lpid))

    def _released(self, opened: _Open, event: Call | Return) -> None:
        vm = opened.call.arguments[0]
        state = self._vm(vm)
        state.guests.clear()
        state.by_shadow.clear()
        for array in self.arrays.values():
            if array.vm == vm:
                for place in [place for place in self.slots if self.array_of(place) == array]:
                    self._empty(place)

    def _committed(self, opened: _Open, event: Call | Return) -> None:
        values = opened.call.values
        # The new memslot is the fourth argument before Linux 5.17, where the third is the old
        # memslot.  Since then it is the third, and the fourth is not a pointer.
        for which in ("fourth", "third"):
            rmap = values[f"{which}_rmap"]
            if rmap:
                base_gfn, npages = _known(event, f"{which}_base_gfn", f"{which}_npages")
                self.add_array(Array(opened.call.arguments[0], rmap, base_gfn, npages))
                return

    def _freed(self, opened: _Open, event: Call | Return) -> None:
        (rmap,) = _known(event, "rmap")
        self._drop_array(rmap)


_STEPS = {
    ("kvmhv_insert_nest_rmap", True): Follower._insert,
    ("kvmhv_remove_nest_rmap_range", True): Follower._remove_range,
    ("kvmhv_remove_nest_rmap_range", False): Follower._removed,
    ("kvmhv_get_nested", False): Follower._got_nested,
    ("kvmhv_release_all_nested", False): Follower._released,
    ("kvmppc_core_commit_memory_region_hv", True): Follower._committed,
    ("kvmppc_core_free_memslot_hv", True): Follower._freed,
    ("kvmppc_create_pte", True): Follower._create,
    ("kvmppc_create_pte", False): Follower._after_create,
    ("kvmppc_free_pgtable_radix", True): Follower._free_table,
    ("kvmppc_unmap_pte", True): Follower._unmap,
    ("kvmppc_unmap_pte", False): Follower._after_unmap,
}
"""What the model does for an event, by its function and by whether it is the call."""


def _known(event: Call | Return, *names: str) -> tuple[int, ...]:
    """Return words of an event by name; a word that could not be read is a divergence."""
    found = []
    for name in names:
        value = event.values[name]
        if value is None:
            raise _Diverged(f"the word '{name}'", "readable", "not readable")
        found.append(value)
    return tuple(found)


def _places(first: int, count: int, known: Set[int]) -> list[int]:
    """Return the addresses of those of ``count`` slots from ``first`` on that are known.

    ``count`` may be far above the number of known slots, so the smaller set is
    searched.  Addresses wrap at 2^64.
    """
    if count <= len(known):
        return [place for i in range(count) if (place := (first + WORD * i) & WORD_MASK) in known]
    steps = sorted(((place - first) & WORD_MASK, place) for place in known)
    return [place for step, place in steps if step % WORD == 0 and step // WORD < count]


def _entry(raw: int) -> int:
    """Return a page-table entry (big-endian) from the word that a little-endian kernel loads."""
    return int.from_bytes(raw.to_bytes(8, "little"), "big")


def _same(present: Leaf | None, leaf: Leaf) -> bool:
    return present is not None and present.shift == leaf.shift
