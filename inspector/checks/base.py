"""What an invariant is, and all that there are.

Each module in ``invariants/`` states one invariant and finds the places where
it does not hold; ``all_invariants`` imports every module of that folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from inspector.checks.findings import Finding, Rest, Severity, Unjudged, Witness
from inspector.kvm.snapshot import Part
from inspector.plugins import INVARIANTS, passed_over, plugins

if TYPE_CHECKING:
    from inspector.checks.view import CheckedHost, CheckedVm

__all__ = [
    "EXPLAINING",
    "Invariant",
    "Passing",
    "all_invariants",
]

Subject = TypeVar("Subject")

EXPLAINING = frozenset({Part.L1, Part.PARTITION})
"""Parts that a verdict does not need.

L1's tables only say what L1 wants: a leaf that contradicts them and is
dangerous is not covered either, so another invariant reports it.  Older
captures do not contain the partition table.
"""


@dataclass(frozen=True)
class Passing:
    """Why an invariant may legally not hold for a while, and in how many places it does not."""

    reason: str
    count: Callable[[CheckedVm], int]


@dataclass(frozen=True, kw_only=True)
class Invariant:
    """A statement that must hold whenever ``mmu_lock`` is free.

    ``source`` names the kernel functions that the rule comes from; ``commit``
    is the title of the kernel commit that made it a rule, if there is one.
    ``reads`` are the parts of the VM that ``find`` looks at; ``needs`` are
    those that must be complete, because a missing piece would look like a
    breach.  An invariant with ``passing`` may legally be broken: its breaches
    are counted and shown, and are no violations.  ``rests`` yields what was
    read and how much of it was confirmed.  ``find_host`` and ``rests_host``
    do the same as ``find`` and ``rests`` for state that belongs to no VM;
    they are called once per snapshot.
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
    """Return all invariants, those of plug-ins included, ordered by identifier."""
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
            passed_over(name, f"it provides {type(invariant).__name__}, not an Invariant")
        elif invariant.id in {one.id for one in own + found}:
            passed_over(name, f"there is an invariant {invariant.id} already")
        else:
            found.append(_guarded(name, invariant))
    return found


def _guarded(name: str, invariant: Invariant) -> Invariant:
    """Return a plug-in's invariant, wrapped so that its exceptions do not end the whole check."""
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
            except (Exception, SystemExit) as error:  # a plug-in may raise anything
                passed_over(f"{name} (invariant {invariant.id})", error)
                if Finding in kinds:
                    vm = getattr(subject, "vm", None)  # a CheckedHost has no vm
                    yield Finding(
                        invariant=invariant.id,
                        vm_lpid=None if vm is None else vm.lpid,
                        summary=f"the plug-in {name} failed",
                        expected="a plug-in that can judge this state",
                        evidence=(),
                        doubt="the check failed, so it is not known what it would have found",
                    )

        return called

    def count(checked: CheckedVm) -> int:
        try:
            return int(passing.count(checked)) if passing else 0
        except (Exception, SystemExit) as error:  # a plug-in may raise anything
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
