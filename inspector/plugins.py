"""Invariants and reports of other packages, found by their entry points.

A plug-in that cannot be used is named in a warning and passed over: it must
not break the tool that it extends.
"""

from __future__ import annotations

import warnings
from typing import Any

from inspector.errors import Hint

__all__ = ["INVARIANTS", "REPORTS", "PluginWarning", "passed_over", "plugins"]

INVARIANTS = "inspector.invariants"
"""Group of the entry points that are each an ``inspector.checks.base.Invariant``."""

REPORTS = "inspector.reports"
"""Group of the entry points that are functions: they take an ``Acquired`` and its ``Judgement``,
and return text."""


class PluginWarning(Hint):
    """A plug-in was passed over."""


def plugins(group: str) -> list[tuple[str, Any]]:
    """Return the objects of a group of entry points with their names.

    A plug-in that cannot be loaded is left out, with a warning.
    """
    # This import takes longer than most commands run.
    from importlib.metadata import entry_points

    found = []
    for point in sorted(entry_points(group=group)):
        try:
            found.append((point.name, point.load()))
        except (Exception, SystemExit) as error:  # whatever other people's code raises
            passed_over(f"{point.name} ({point.value})", error)
    return found


def passed_over(name: str, why: object) -> None:
    """Warn that a plug-in is not used."""
    shown = repr(why) if isinstance(why, BaseException) else why
    warnings.warn(f"the plug-in {name} is passed over: {shown}", PluginWarning, stacklevel=2)
