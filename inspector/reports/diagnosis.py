"""The report of ``inspector doctor``, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inspector.diagnosis import Diagnosis
from inspector.errors import printable
from inspector.reports.text import table

__all__ = ["diagnosis_json", "diagnosis_report"]


def diagnosis_report(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield the lines of ``inspector doctor``."""
    rows = []
    for item in diagnosis.observations:
        rows.append((item.outcome.value, item.step, printable(item.found)))
        if item.next:
            rows.append(("", "", f"next: {item.next}"))
    yield from list(table(("",) * 3, rows))[1:]
    yield ""
    yield "usable" if diagnosis.usable else "not usable"


def diagnosis_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the document of ``inspector doctor --json``."""
    return {
        "schema": "inspector.doctor/1",
        "target": diagnosis.target,
        "usable": diagnosis.usable,
        "steps": [
            {
                "step": item.step,
                "outcome": item.outcome.value,
                "found": item.found,
                "next": item.next or None,
            }
            for item in diagnosis.observations
        ],
    }
