"""What a walker learns about a structure beside its members: which words confirm each other.

Kernel structures say many things twice: a list can be followed in both
directions, and a node counts its children.  A walker compares the two, and
notes where they disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["UNCONFIRMED", "Comparison", "Confirmation", "Mismatch", "Word"]


class Word(NamedTuple):
    """An integer of ``size`` bytes that was read at a kernel address."""

    what: str
    address: int
    value: int
    size: int = 8


class Mismatch(NamedTuple):
    """Words that should agree and do not.

    ``doubt`` says how the kernel itself may come by them for a moment; it is
    empty where no order of its stores leads there.
    """

    summary: str
    expected: str
    words: tuple[Word, ...]
    doubt: str = ""


class Confirmation(NamedTuple):
    """What is known about the words of one structure, or of several of one kind.

    ``words`` of them were read, ``confirmed`` have a second word that agrees.
    ``missing`` says why there is no second word, once for each reason.
    """

    words: int = 0
    confirmed: int = 0
    mismatches: tuple[Mismatch, ...] = ()
    missing: tuple[str, ...] = ()


UNCONFIRMED = Confirmation()
"""What is known about words that no walker compared."""


@dataclass
class Comparison:
    """A ``Confirmation`` while its structure is walked."""

    words: int = 0
    confirmed: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lacks(self, why: str) -> None:
        """Note that a second word is missing."""
        if why not in self.missing:
            self.missing.append(why)

    @property
    def given(self) -> Confirmation:
        """What is known at the end of the walk."""
        return Confirmation(self.words, self.confirmed, tuple(self.mismatches), tuple(self.missing))
