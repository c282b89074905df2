"""Reports of a kernel that was followed by the model: ``replay`` and ``trace``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from inspector.following.calls import CallRecording
from inspector.following.replay import Disagreement, Replayed
from inspector.following.trace import Trace
from inspector.model.events import Divergence, SlotWords
from inspector.reports.jsonform import target_json
from inspector.reports.text import opened, table
from inspector.session import Acquired

__all__ = [
    "divergence_json",
    "divergence_report",
    "replay_json",
    "replay_report",
    "trace_json",
    "trace_report",
]

DIFFERENCES_SHOWN = 20

Side = SlotWords | str


def replay_report(acquired: Acquired, recording: CallRecording, outcome: Replayed) -> Iterator[str]:
    """Yield the lines of ``inspector replay``."""
    yield from opened(acquired.snapshot, acquired.origin)
    yield ""
    yield from table(("function", "calls"), sorted(outcome.calls.items()))
    yield ""
    if outcome.divergence is not None:
        yield from divergence_report(outcome.divergence)
        yield ""
        yield f"verdict: diverged at call {outcome.divergence.number}"
        return
    count = outcome.calls.total()
    yield f"{count} calls followed without divergence"
    if outcome.equal_after is None:
        yield ""
        yield "at the end:"
        for difference in outcome.differences[:DIFFERENCES_SHOWN]:
            yield f"  {difference.what}"
            yield from _sides(difference.model, difference.target, "target")
        more = len(outcome.differences) - DIFFERENCES_SHOWN
        if more > 0:
            yield f"  ... and {more} more differences (--json shows all)"
        yield ""
        yield "verdict: diverged at the end"
        return
    when = "at the end" if not outcome.beyond else f"after call {outcome.equal_after}"
    yield (
        f"{when} the model is equal to the target: {outcome.slots} slots, "
        f"{outcome.entries} entries, {outcome.leaves} shadow leaves"
    )
    if outcome.beyond:
        yield f"the {outcome.beyond} calls after that were made after the target had been read"
    yield ""
    yield "verdict: same"


def trace_report(found: Trace) -> Iterator[str]:
    """Yield the lines of ``inspector trace``."""
    snapshot = found.snapshot
    yield f"Linux {snapshot.release}, read from {found.read_path}"
    yield (
        f"began with {sum(len(vm.rmaps) for vm in snapshot.vms)} slots, "
        f"{sum(vm.rmaps.word.size for vm in snapshot.vms)} entries"
    )
    yield ""
    if found.calls:
        yield from table(("function", "calls"), sorted(found.calls.items()))
        yield ""
    rate = found.stops / found.seconds if found.seconds else 0.0
    guests = f", {found.elsewhere} of them in kernels of guests" if found.elsewhere else ""
    yield (
        f"{found.returns} calls followed to their return in {found.seconds:.1f} s; "
        f"{found.stops} stops{guests}, {rate:.0f} a second"
    )
    yield ""
    if found.divergence is not None:
        yield from divergence_report(found.divergence)
        yield ""
        yield f"verdict: diverged at call {found.divergence.number}"
    elif not found.calls:
        yield "verdict: nothing was seen to be inserted or removed"
    else:
        yield "verdict: same"


def divergence_report(divergence: Divergence) -> Iterator[str]:
    """Yield the lines that show one divergence."""
    arguments = ", ".join(f"{argument:#x}" for argument in divergence.arguments)
    yield f"call {divergence.number}: {divergence.function}({arguments})"
    yield f"  {divergence.source}"
    where = "" if divergence.slot is None else f" at {divergence.slot:#x}"
    gfn = "" if divergence.gfn is None else f", gfn {divergence.gfn:#x}"
    yield f"  {divergence.what}{where}{gfn}"
    yield from _sides(divergence.expected, divergence.found, "kernel")


def _sides(model: Side, other: Side, name: str) -> Iterator[str]:
    if isinstance(model, str) or isinstance(other, str):
        yield f"    model   {_text(model)}"
        yield f"    {name:6}  {_text(other)}"
        return
    rows = [("    ", "model", name, "")]
    for index, (expected, found) in enumerate(zip_longest(model, other, fillvalue=-1)):
        what = "slot" if not index else ("next", "word")[index % 2 == 0]
        mark = "" if expected == found else "differs"
        rows.append((f"    {what}", _word(expected), _word(found), mark))
    yield from list(table(("",) * 4, rows))[1:]


def _text(side: Side) -> str:
    return side if isinstance(side, str) else " ".join(map(_word, side))


def _word(word: int | None) -> str:
    if word is None:
        return "not readable"
    return "" if word < 0 else f"{word:#018x}"


def replay_json(acquired: Acquired, recording: CallRecording, outcome: Replayed) -> dict[str, Any]:
    """Return the document of ``inspector replay --json``."""
    return {
        "schema": "inspector.replay/1",
        "target": target_json(acquired),
        "recording": recording.name,
        "verdict": "same" if outcome.same else "diverged",
        "calls": outcome.calls.total(),
        "calls_by_function": dict(sorted(outcome.calls.items())),
        "equal_after": outcome.equal_after,
        "beyond": outcome.beyond,
        "slots": outcome.slots,
        "entries": outcome.entries,
        "shadow_leaves": outcome.leaves,
        "divergence": divergence_json(outcome.divergence),
        "differences": [_difference(difference) for difference in outcome.differences],
    }


def trace_json(target: str, found: Trace) -> dict[str, Any]:
    """Return the document of ``inspector trace --json``."""
    snapshot = found.snapshot
    return {
        "schema": "inspector.trace/1",
        "target": target,
        "read_path": found.read_path,
        "release": snapshot.release,
        "build_id": snapshot.build_id,
        "verdict": "same" if found.divergence is None else "diverged",
        "ended": found.ended,
        "calls": found.calls.total(),
        "calls_by_function": dict(sorted(found.calls.items())),
        "returns": found.returns,
        "stops": found.stops,
        "stops_in_guests": found.elsewhere,
        "seconds": round(found.seconds, 3),
        "divergence": divergence_json(found.divergence),
    }


def divergence_json(divergence: Divergence | None) -> Mapping[str, Any] | None:
    """Return the JSON form of a divergence."""
    if divergence is None:
        return None
    return {
        "call": divergence.number,
        "function": divergence.function,
        "source": divergence.source,
        "arguments": [f"{argument:#x}" for argument in divergence.arguments],
        "what": divergence.what,
        "slot": None if divergence.slot is None else f"{divergence.slot:#x}",
        "gfn": None if divergence.gfn is None else f"{divergence.gfn:#x}",
        "expected": _side(divergence.expected),
        "found": _side(divergence.found),
    }


def _difference(difference: Disagreement) -> dict[str, Any]:
    return {
        "what": difference.what,
        "model": _side(difference.model),
        "target": _side(difference.target),
    }


def _side(side: Side) -> str | list[str | None]:
    if isinstance(side, str):
        return side
    return [None if word is None else f"{word:#018x}" for word in side]
