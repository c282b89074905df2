"""What an invariant, a finding and a note are.

Each module beside this one in ``invariants/`` states one invariant and finds
where it does not hold; ``all_invariants`` collects them by looking into that
folder.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from inspector.checks.view import CheckedVm

__all__ = ["Evidence", "Finding", "Invariant", "all_invariants"]


class Evidence(NamedTuple):
    """One word that was read, or one address that matters, for checking by hand.

    ``space`` says what ``address`` is in: ``"physical"``, ``"kernel"``,
    ``"L1"``, ``"L2"``.  ``value`` is the word there, None for a bare address.
    """

    what: str
    space: str
    address: int
    value: int | None = None
    meaning: str = ""


@dataclass(frozen=True)
class Finding:
    """A place where an invariant does not hold, with its proof."""

    invariant: str
    vm_lpid: int
    summary: str
    expected: str
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class Invariant:
    """Something that must hold whenever ``mmu_lock`` is free.

    ``source`` names the kernel function the rule comes from.  ``by_absence``
    tells that it is broken by something that is nowhere, which can be said
    only where everything was read.
    """

    id: str
    statement: str
    why: str
    source: str
    find: Callable[[CheckedVm], Iterator[Finding]]
    by_absence: bool = False


@cache
def all_invariants() -> tuple[Invariant, ...]:
    """Return every invariant there is, by identifier."""
    from inspector.checks import invariants

    found = []
    for module in pkgutil.iter_modules(invariants.__path__):
        loaded = importlib.import_module(f"{invariants.__name__}.{module.name}")
        found.append(loaded.INVARIANT)
    return tuple(sorted(found, key=lambda invariant: str(invariant.id)))
