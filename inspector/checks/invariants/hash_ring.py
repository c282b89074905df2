"""The rmap words of a hash guest are well-formed, and every ring of HPT entries closes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector import hash_encoding
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part

ID = "hash-ring"
INDEX_SIZE = 4
WORD = 8

WRONG = {
    "range": ("leads to HPT entry {:#x}, which the HPT does not have", "an entry of the HPT"),
    "back": (
        "has an HPT entry that leads back to {:#x}",
        "the entry before it: both links of a ring change together",
    ),
}


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the rings that lead out of the HPT or do not lead back, and the malformed words."""
    vm = checked.vm
    rmaps = vm.hash_rmaps
    for problem in rmaps.problems:
        if problem.kind not in WRONG:
            continue
        word, where = int(rmaps.word[problem.slot]), int(rmaps.where[problem.slot])
        what, expected = WRONG[problem.kind]
        in_array = problem.place == where
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"the ring of gfn {int(rmaps.gfn[problem.slot]):#x} "
            f"{what.format(problem.index)}",
            expected=expected,
            evidence=(
                Evidence("rmap word", "kernel", where, word),
                Evidence(
                    "word that holds the index",
                    "kernel",
                    problem.place,
                    word if in_array else problem.index,
                    "",
                    WORD if in_array else INDEX_SIZE,
                ),
            ),
            # kvmppc_add_revmap_chain and remove_revmap_chain hold the word's lock bit while they
            # change a ring.
            doubt="the word's lock bit is set: the ring is being changed"
            if word & hash_encoding.LOCKED
            else "",
        )
    yield from _words(checked)


def _words(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the words with combinations of bits that the kernel does not write."""
    rmaps = checked.vm.hash_rmaps
    word = rmaps.word
    # reserved bits; bits besides the lock in a word of another type; an index without PRESENT
    odd = (word & np.uint64(hash_encoding.RESERVED_MASK)) != 0
    odd |= ((word & np.uint64(hash_encoding.TYPE_MASK)) != hash_encoding.TYPE_HPT) & (
        (word & np.uint64(~hash_encoding.LOCKED & ((1 << 64) - 1))) != 0
    )
    odd |= ((word & np.uint64(hash_encoding.PRESENT)) == 0) & (
        (word & np.uint64(hash_encoding.INDEX_MASK)) != 0
    )
    for row in np.flatnonzero(odd):
        yield Finding(
            invariant=ID,
            vm_lpid=checked.vm.lpid,
            summary=f"the rmap word of gfn {int(rmaps.gfn[row]):#x}: "
            + "; ".join(hash_encoding.problems(int(word[row]))),
            expected="a word of a hash guest, as the kernel writes it",
            evidence=(Evidence("rmap word", "kernel", int(rmaps.where[row]), int(word[row])),),
        )


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield how many HPT entries were reached in both directions."""
    rmaps = checked.vm.hash_rmaps
    if not checked.vm.radix:
        torn = len({problem.slot for problem in rmaps.problems})
        confirmed = max(0, rmaps.index.size - torn) if rmaps.followed else 0
        yield Witness("HPT entries on rings", rmaps.index.size, confirmed, "their back links")
        yield Unjudged("whether every HPT entry is on a ring", "the HPT itself is not read")


INVARIANT = Invariant(
    id=ID,
    statement="The rmap words of a hash guest have only bits that such words can have, and the "
    "HPT entries that map a page form a ring in both directions.",
    why="When a host page goes away, L0 removes the entries on its ring from the HPT: an entry "
    "that is on no ring keeps the page mapped.",
    source="kvmppc_add_revmap_chain, remove_revmap_chain, kvm_unmap_rmapp",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.RINGS}),
    rests=rests,
)
