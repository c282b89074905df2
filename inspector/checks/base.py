"""What an invariant, a finding and a witness are.

Each module beside this one in ``invariants/`` states one invariant and finds
where it does not hold; ``all_invariants`` collects them by looking into that
folder.
"""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from inspector.kvm.snapshot import Part
from inspector.plugins import INVARIANTS, passed_over, plugins

if TYPE_CHECKING:
    from inspector.checks.view import CheckedHost, CheckedVm

__all__ = [
    "DISAGREEMENT",
    "EXPLAINING",
    "Evidence",
    "Finding",
    "Invariant",
    "Passing",
    "Rest",
    "Severity",
    "Unjudged",
    "Witness",
    "all_invariants",
    "disagreement",
]

Subject = TypeVar("Subject")

EXPLAINING = frozenset({Part.L1, Part.PARTITION})
"""Parts without which a verdict can be given.

L1's tables say what L1 wants: a leaf that is wrong by them and dangerous is
not covered either.  The partition table is missing from older captures.
"""


DISAGREEMENT = "tool-disagrees"
"""What stands for an invariant in a finding about this tool itself."""


class Severity(enum.Enum):
    """What a breach means for the reader."""

    MEMORY_SAFETY = "memory safety"
    STRUCTURE = "structure"
    BOOKKEEPING = "bookkeeping"

    @property
    def meaning(self) -> str:
        """The same in a sentence."""
        return _MEANINGS[self]


_MEANINGS = {
    Severity.MEMORY_SAFETY: "A guest may reach memory that is not its own, or the kernel memory "
    "that it has freed or never had.",
    Severity.STRUCTURE: "Something is not as the kernel writes it, so what the kernel will make "
    "of it is not known.",
    Severity.BOOKKEEPING: "What the kernel knows of a page's use is not what is true of it; "
    "nothing can be reached that should not be.",
}


class Evidence(NamedTuple):
    """One word that was read, or one address that matters, for checking by hand.

    ``space`` says what ``address`` is in: ``"physical"``, ``"kernel"``,
    ``"L1"``, ``"L2"``.  ``value`` is the word of ``size`` bytes there, None
    for a bare address.  Words at physical addresses and in L1 are page-table
    entries, big-endian.
    """

    what: str
    space: str
    address: int
    value: int | None = None
    meaning: str = ""
    size: int = 8


@dataclass(frozen=True)
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
    """What an invariant could not look at in this target, and why.

    It leaves the verdict as it is: an invariant whose missing words are at
    stake yields a finding with a doubt instead.
    """

    what: str
    why: str


Rest = Witness | Unjudged
"""One thing that a verdict rests on, or that it does not rest on."""


def disagreement(invariant: str, vm_lpid: int, of: str, evidence: Evidence) -> Finding:
    """Return the finding that model and arrays, which state one rule twice, do not say the same.

    It is one about this tool and not about the target: nothing can then be
    concluded.

    Args:
        invariant: the rule.
        vm_lpid: the VM.
        of: what they do not agree about.
        evidence: where that was read.
    """
    return Finding(
        DISAGREEMENT,
        vm_lpid,
        f"this tool contradicts itself over {invariant}: its arrays say that {of} breaks it, its "
        "model that it does not",
        "one answer from both; report this with a capture, it is a fault of the inspector",
        (evidence,),
    )


@dataclass(frozen=True)
class Passing:
    """Why an invariant may legally not hold for a while, and in how many places it does not."""

    reason: str
    count: Callable[[CheckedVm], int]


@dataclass(frozen=True)
class Invariant:
    """Something that must hold whenever ``mmu_lock`` is free.

    ``source`` names the kernel functions the rule comes from, ``commit`` the
    title of the one that made it a rule, where there is one.  ``reads`` are the parts of
    the VM it looks at, ``needs`` those of them that must be whole, since what
    is missing would look like a breach.  What is ``passing`` may be broken
    legally: places where it is are counted and shown, and are no violation.
    ``rests`` says what was read and confirmed.  ``find_host`` and
    ``rests_host`` do the same as ``find`` and ``rests`` for what belongs to
    no VM; they are called once for a snapshot.
    """

    id: str
    statement: str
    why: str
    source: str
    severity: Severity
    find: Callable[[CheckedVm], Iterator[Finding]]
    reads: frozenset[Part]
    needs: frozenset[Part] = frozenset()
    passing: Passing | None = None
    commit: str = ""
    rests: Callable[[CheckedVm], Iterator[Rest]] | None = None
    find_host: Callable[[CheckedHost], Iterator[Finding]] | None = None
    rests_host: Callable[[CheckedHost], Iterator[Rest]] | None = None


@cache
def all_invariants() -> tuple[Invariant, ...]:
    """Return every invariant there is, by identifier, those of plug-ins too."""
    from inspector.checks import invariants

    found = []
    for module in pkgutil.iter_modules(invariants.__path__):
        loaded = importlib.import_module(f"{invariants.__name__}.{module.name}")
        found.append(loaded.INVARIANT)
    return tuple(sorted(found + _others(found), key=lambda invariant: str(invariant.id)))


def _others(own: list[Invariant]) -> list[Invariant]:
    """Return the invariants of plug-ins."""
    found: list[Invariant] = []
    for name, invariant in plugins(INVARIANTS):
        if not isinstance(invariant, Invariant):
            passed_over(name, f"it gives {type(invariant).__name__}, not an Invariant")
        elif invariant.id in {one.id for one in own + found}:
            passed_over(name, f"there is an invariant {invariant.id} already")
        else:
            found.append(_guarded(name, invariant))
    return found


def _guarded(name: str, invariant: Invariant) -> Invariant:
    """Return a plug-in's invariant, which then fails by itself and not with everything."""
    passing = invariant.passing

    def guarded(
        call: Callable[[Subject], Iterator[Any]], kinds: tuple[type, ...]
    ) -> Callable[[Subject], Iterator[Any]]:
        def called(subject: Subject) -> Iterator[Any]:
            try:
                for item in call(subject):
                    of_another = isinstance(item, Finding) and item.invariant != invariant.id
                    if not isinstance(item, kinds) or of_another:
                        raise TypeError(f"{item!r} is no {_names(kinds)} of {invariant.id}")
                    yield item
            except (Exception, SystemExit) as error:  # whatever other people's code raises
                passed_over(f"{name} (invariant {invariant.id})", error)
                if Finding in kinds:
                    vm = getattr(subject, "vm", None)  # a host has none
                    yield Finding(
                        invariant.id,
                        None if vm is None else vm.lpid,
                        f"the plug-in {name} failed",
                        "a plug-in that can judge this state",
                        (),
                        doubt="what a check that failed would have found is not known",
                    )

        return called

    def count(checked: CheckedVm) -> int:
        try:
            return int(passing.count(checked)) if passing else 0
        except (Exception, SystemExit) as error:  # whatever other people's code raises
            passed_over(f"{name} (invariant {invariant.id})", error)
            return 0

    finding, rest = (Finding,), (Witness, Unjudged)
    find_host, rests, rests_host = invariant.find_host, invariant.rests, invariant.rests_host
    return replace(
        invariant,
        find=guarded(invariant.find, finding),
        find_host=guarded(find_host, finding) if find_host else None,
        rests=guarded(rests, rest) if rests else None,
        rests_host=guarded(rests_host, rest) if rests_host else None,
        passing=replace(passing, count=count) if passing else None,
    )


def _names(kinds: tuple[type, ...]) -> str:
    return " or ".join(kind.__name__.lower() for kind in kinds)
