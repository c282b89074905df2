"""The rows of the table, and the functions that take times."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

__all__ = ["Row", "best", "children", "run"]


@dataclass(frozen=True)
class Row:
    """One measurement.

    ``value`` is in ``unit``, and so is ``bound``, which was taken in the same
    run and is described by ``peer``.  ``at_most`` is the goal for their ratio
    and ``goal`` the goal for the value itself, None if there is none.
    ``parts`` are the parts of the time, in ``unit``, and ``why`` explains a
    missed goal.
    """

    name: str
    value: float | None
    unit: str
    peer: str = ""
    bound: float | None = None
    at_most: float | None = None
    goal: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """The value divided by the bound."""
        if self.value is None or not self.bound:
            return None
        return self.value / self.bound

    @property
    def met(self) -> bool | None:
        """Whether all goals are met; None if there is no goal, or nothing was measured."""
        if self.value is None or (self.at_most is None and self.goal is None):
            return None
        good = self.goal is None or self.value <= self.goal
        if self.at_most is not None:
            good &= self.ratio is not None and self.ratio <= self.at_most
        return good

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Row:
        """Return the row that ``to_json`` described."""
        return cls(**{name.name: raw[name.name] for name in fields(cls) if name.name in raw})

    def to_json(self) -> dict[str, Any]:
        """Return the row as values for JSON."""
        return asdict(self) | {"ratio": self.ratio, "met": self.met}


def best(repeat: int, measure: Callable[[], float]) -> float:
    """Return the least of several measurements; in the others the host did something else."""
    return min(measure() for _ in range(repeat))


def children() -> float:
    """Return the CPU seconds that the children took that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(*arguments: str, codes: Sequence[int] = (0,)) -> float:
    """Run Python with some arguments and return how many seconds it took."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    taken = time.perf_counter() - began
    if done.returncode not in codes:
        raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr[-500:]}")
    return taken
