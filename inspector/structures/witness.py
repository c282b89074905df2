"""The words of a structure that confirm each other, as a walker finds them.

Kernel structures hold many things twice: a list can be followed in both
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

    ``doubt`` says how the kernel's own stores can leave the words like this
    for a moment; it is empty where they cannot.
    """

    summary: str
    expected: str
    words: tuple[Word, ...]
    doubt: str = ""


class Confirmation(NamedTuple):
    """What is known about the words of one structure, or of several of one kind.

    ``words`` is the number of words that were read, and ``confirmed`` of those
    with a second word that agrees.  ``missing`` has the reasons why a second
    word is missing, each once.
    """

    words: int = 0
    confirmed: int = 0
    mismatches: tuple[Mismatch, ...] = ()
    missing: tuple[str, ...] = ()


UNCONFIRMED = Confirmation()
"""The confirmation of words that no walker compared."""


@dataclass
class Comparison:
    """A ``Confirmation`` while its structure is walked."""

    words: int = 0
    confirmed: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def lacks(self, why: str) -> None:
        """Note why a second word is missing."""
        if why not in self.missing:
            self.missing.append(why)

    @property
    def given(self) -> Confirmation:
        """The result at the end of the walk."""
        return Confirmation(self.words, self.confirmed, tuple(self.mismatches), tuple(self.missing))
