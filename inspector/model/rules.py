"""The rules that must hold, one for each point where a kernel may depart from them.

The operations of the model decide such a point by these rules only.
``MUST_HOLD`` is the reading in which every invariant holds; the kernel as it is,
or was, is that reading with some of its rules replaced
(``inspector.model.departures``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from inspector import pte
from inspector.model.parts import Guest, Memslot
from inspector.model.vm import Leaf

__all__ = ["MUST_HOLD", "Rules"]


def words_met(words: Sequence[int]) -> Sequence[int]:
    """A walk through a slot meets all of its words."""
    return words


def host_shift(page_shift: int, memslot: Memslot, gpa: int, hva: int, shift: int) -> int:
    """L0 maps a large page only where all of it is in the memslot, equally aligned."""
    # For a power of two, "& -size" rounds down to it, and "| (size - 1)" up to the last byte.
    size = 1 << shift
    first = (gpa & -size) >> page_shift
    last = (gpa | (size - 1)) >> page_shift
    fits = memslot.holds(first) and memslot.holds(last)
    return shift if fits and ((gpa ^ hva) & (size - 1)) == 0 else page_shift


def slot_gfn(page_shift: int, gpa: int, shift: int) -> int:
    """The slot of an entry is that of the first guest page of L0's leaf."""
    return (gpa & -(1 << shift)) >> page_shift


def unmapped_gfns(gfns: range) -> Iterable[int]:
    """Every guest page of a range that the host unmaps is unmapped."""
    return gfns


def rc_gfn(page_shift: int, leaf: Leaf, gfn: int) -> int:
    """R and C are updated by way of the slot that has the leaf's entries."""
    return leaf.address >> page_shift


def rc_followed() -> bool:
    """Clearing R or C in L0's leaf clears it in the shadow leaves to its page."""
    return True


def rc_flushed_lpid(guest: Guest) -> int:
    """A shadow leaf's cached translations carry the shadow LPID."""
    return guest.shadow_lpid


def rc_set_on(shadow: int, host: int) -> bool:
    """R and C are set in a shadow leaf if it leads where L1's and L0's tables do."""
    return shadow == host


def rc_masked(l1_flags: int, writing: bool) -> int:
    """R and C of a new shadow leaf: R only if L1 has it, C only if L1 has it and L2 writes."""
    allowed = l1_flags & pte.REFERENCED
    return allowed | (l1_flags & pte.CHANGED if writing else 0)


def replaces(present: Leaf, new: Leaf) -> bool:
    """A present shadow leaf to another frame is replaced, not widened."""
    return present.frame != new.frame


def freed_address(leaf: Leaf) -> int:
    """A leaf in a table that is freed is removed under the address it translates."""
    return leaf.address


def result_written_back(big_endian: bool) -> bool:
    """L1 gets L2's state back after every entry, whatever its byte order."""
    return True


def flush_all_holds_guest() -> bool:
    """A flush of all nested guests holds a reference to each while it uses it."""
    return True


@dataclass(frozen=True)
class Rules:
    """A reading of the specification: the answer at every point of departure."""

    words_met: Callable[[Sequence[int]], Sequence[int]] = words_met
    host_shift: Callable[[int, Memslot, int, int, int], int] = host_shift
    slot_gfn: Callable[[int, int, int], int] = slot_gfn
    unmapped_gfns: Callable[[range], Iterable[int]] = unmapped_gfns
    rc_gfn: Callable[[int, Leaf, int], int] = rc_gfn
    rc_followed: Callable[[], bool] = rc_followed
    rc_flushed_lpid: Callable[[Guest], int] = rc_flushed_lpid
    rc_set_on: Callable[[int, int], bool] = rc_set_on
    rc_masked: Callable[[int, bool], int] = rc_masked
    replaces: Callable[[Leaf, Leaf], bool] = replaces
    freed_address: Callable[[Leaf], int] = freed_address
    result_written_back: Callable[[bool], bool] = result_written_back
    flush_all_holds_guest: Callable[[], bool] = flush_all_holds_guest


MUST_HOLD = Rules()
