"""The rows as a table, and as the manual's page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tests.bench.measure import Row

__all__ = ["page", "table"]

HEADINGS = ("what", "measured", "bound or peer", "ratio", "goal", "met")


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a table for a terminal."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
    for line in cells:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
    yield ""
    yield from _made_of(rows, "  ")


def page(document: dict[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the manual's page."""
    yield "# How fast it is"
    yield ""
    yield "Written by `python -m tests.bench --page` from recorded runs on one machine, each figure"
    yield "beside a bound or a peer taken in the same run. Each live one is the best of several;"
    yield "what was running besides can only make it worse."
    yield ""
    yield f"Host: {document['processors']} processors, load {document['load']:.1f} at the end,"
    yield f"Python {document['python']}, NumPy {document['numpy']},"
    yield f"the best of {document['repeat']} repetitions."
    yield ""
    yield from _markdown((HEADINGS, *(_cells(row) for row in rows)))
    yield ""
    yield "## What the time is made of"
    yield ""
    yield from _made_of(rows, "* ")
    yield ""
    missed = [row for row in rows if row.met is False]
    if missed:
        yield "## What is missed"
        yield ""
        for row in missed:
            yield f"* {row.name}: {row.why or 'for no reason that is known'}."
        yield ""
    yield from NOTES.strip().splitlines()


def _markdown(cells: Iterable[Sequence[str]]) -> Iterator[str]:
    for number, line in enumerate(cells):
        yield f"| {' | '.join(line)} |"
        if number == 0:
            yield "|" + "---|" * len(line)


def _cells(row: Row) -> tuple[str, ...]:
    goals = []
    if row.at_most is not None:
        goals.append(f"{row.at_most:g}x")
    if row.goal is not None:
        goals.append(f"{row.goal:g} {row.unit}".strip())
    met = {True: "yes", False: "no", None: ""}[row.met]
    return (
        row.name,
        _figure(row.value, row.unit),
        f"{_figure(row.bound, row.unit)} {row.peer}".strip() if row.bound else "",
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        ", ".join(goals),
        met,
    )


def _figure(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g} {unit}".strip()


def _made_of(rows: Iterable[Row], lead: str) -> Iterator[str]:
    for row in rows:
        said = [f"{name} {_figure(value, row.unit)}" for name, value in row.parts.items()]
        if row.note:
            said.append(row.note)
        if said:
            yield f"{lead}{row.name}: {'; '.join(said)}"


NOTES = """
**The direct path** stops the machine twice. At the first stop GDB attaches (it reads the stub's
description of the registers), asks QEMU for its blocks of RAM and where in the process they lie
(`info ramblock`, `gpa2hva`), and compares some pages. Then the machine runs, and is walked. The
second stop is an interrupt, one `process_vm_readv` for each 1,024 ranges of the plan, and letting
go on; GDB is not told of it, since it would look at registers and at the stack first. Nothing is
decoded in a stop, and after it only what is not as it was seen before. There is no third stop: GDB
is ended while the machine runs. A copy that lacks something makes one stop more.

**Through GDB** everything has to be read in a stop. A process between GDB and QEMU's stub reads,
with many packets under way at once, while GDB waits; the bare client beside it waits for each
answer.

**Watching** stops the machine once for each sample, for the copy, and compares it with that of the
sample before. What has not changed is not decoded again, so on a machine at rest a sample takes
some 4 ms of processor time; where much changes it takes up to what the first one did (20 to 50 ms).
Decoding takes the inspector's processor, not the guest's, unless both share one.

**The whole process** is mostly Python importing NumPy; GDB starts meanwhile. The modules of the
inspector are compiled once, as everywhere: with PYTHONDONTWRITEBYTECODE it takes 0.1 s more.

**Offline** no step is per entry, and entries are joined with leaves by maps from pages to leaves,
not by searching; what has to be held at once goes through the processor's cache in pieces of
65,536. What is left is some tens of passes over the bytes, and memory: every word and every leaf
becomes a row of several columns, and the kernel clears each page that is given out for them. The
bound reads bytes that are mapped already and keeps nothing. A dump that is only checked is not
copied. Python's own start is not in these rows.
"""
