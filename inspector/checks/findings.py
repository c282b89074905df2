"""What a check yields: findings with their proof, and what it rests on."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "DISAGREEMENT",
    "Evidence",
    "Finding",
    "Rest",
    "Severity",
    "Unjudged",
    "Witness",
    "disagreement",
]

DISAGREEMENT = "tool-disagrees"
"""The invariant id of a finding about this tool itself."""


class Severity(enum.Enum):
    """What a breach means for the reader."""

    MEMORY_SAFETY = "memory safety"
    STRUCTURE = "structure"
    BOOKKEEPING = "bookkeeping"

    @property
    def meaning(self) -> str:
        """What the severity means, in a sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    Severity.MEMORY_SAFETY: "A guest may reach memory that is not its own, or the kernel may use "
    "memory that it has freed or never had.",
    Severity.STRUCTURE: "Something is not in the form that the kernel writes, so it is not known "
    "what the kernel will do with it.",
    Severity.BOOKKEEPING: "The kernel's record of a page's use is wrong; no guest can reach memory "
    "that it should not reach.",
}


class Evidence(NamedTuple):
    """One word that was read, or one address that matters, for checking by hand.

    ``space`` is the address space of ``address``: ``"physical"``,
    ``"kernel"``, ``"L1"`` or ``"L2"``.  ``value`` is the word of ``size`` bytes there, None
    for a bare address.  Words at physical addresses and in L1 are page-table
    entries, big-endian.
    """

    what: str
    space: str
    address: int
    value: int | None = None
    meaning: str = ""
    size: int = 8


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A place where an invariant does not hold, with its proof.

    ``vm_lpid`` is None for a finding about the host as a whole.  ``doubt``
    says why the state may be legal at this moment.  A finding with a doubt is
    no violation, but it makes the verdict inconclusive.
    """

    invariant: str
    vm_lpid: int | None
    summary: str
    expected: str
    evidence: tuple[Evidence, ...]
    doubt: str = ""


class Witness(NamedTuple):
    """Words of one kind that the walk read, and how many of them a second word confirms.

    ``what`` names the kind, in the plural; ``by`` says what the second word
    is.  Each kind is counted by one invariant only.
    """

    what: str
    words: int
    confirmed: int
    by: str


class Unjudged(NamedTuple):
    """Something that an invariant could not examine in this target, and why.

    It does not change the verdict: an invariant that needs the missing words
    for its verdict yields a finding with a doubt instead.
    """

    what: str
    why: str


Rest = Witness | Unjudged
"""Something that a verdict rests on, or something that could not be examined for it."""


def disagreement(invariant: str, vm_lpid: int, of: str, evidence: Evidence) -> Finding:
    """Return the finding for a place where the model and the arrays give different answers.

    Both state the same rule.  The finding is about this tool and not about
    the target, about which nothing can then be concluded.

    Args:
        invariant: the identifier of the rule.
        vm_lpid: the VM.
        of: the leaf or entry that they disagree about.
        evidence: the word of that leaf or entry.
    """
    return Finding(
        invariant=DISAGREEMENT,
        vm_lpid=vm_lpid,
        summary=f"this tool contradicts itself on {invariant}: its arrays say that {of} breaks it, "
        "its model says that it does not",
        expected="the same answer from both; this is a bug of the inspector: report it with a "
        "capture",
        evidence=(evidence,),
    )
