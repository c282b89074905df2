"""The report of ``inspector history``, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inspector.errors import printable
from inspector.following.history import History, Write
from inspector.kernel.symbols import CodePlace
from inspector.reports.jsonform import target_json
from inspector.reports.text import opened

__all__ = ["history_json", "history_report"]

CALLERS_SHOWN = 5


def history_report(history: History) -> Iterator[str]:
    """Yield the lines of ``inspector history``."""
    yield from opened(history.acquired.snapshot, history.acquired.origin)
    yield (
        f"recording watched from instruction {history.since} to {history.until} "
        f"in {history.seconds:.1f} s"
    )
    for word in history.words:
        yield ""
        yield (
            f"{word.what}: kernel {word.address:#x}, physical {word.physical:#x}, "
            f"now {word.value:#018x}"
        )
    yield ""
    shown = len(history.writes)
    yield _number(history.total, "write") + (
        f", the last {shown} of them, newest first" if shown < history.total else ", newest first"
    )
    several = len(history.words) > 1
    foreign = False
    for write in history.writes:
        if not foreign and not write.of_kvm:
            foreign = True
            yield "  -- earlier, the memory was another owner's (no function of KVM calls)"
        elif foreign and write.of_kvm:
            foreign = False
            yield "  -- earlier still, it was KVM's"
        yield from _write(history, write, several=several)
    if history.elsewhere:
        yield (
            f"{_number(history.elsewhere, 'more store')} at the same virtual address "
            "went to other memory (a guest's, or another mapping's)"
        )
    if history.stopped_by is not None:
        yield (
            f"stopped by {history.stopped_by.value} at instruction {history.until} "
            f"of {history.end}: writers after it were not seen"
        )


def _write(history: History, write: Write, *, several: bool) -> Iterator[str]:
    text = write.instruction.text if write.instruction else "instruction not readable"
    yield (
        f"  instruction {write.count}  {write.old:#018x} -> {write.new:#018x}"
        + (f"  {history.words[write.word].what}" if several else "")
    )
    yield f"    {_name(write.where)}  {printable(text)}"
    names = [place.function for place in write.callers]
    if names:
        more = len(names) - CALLERS_SHOWN
        yield "    called by " + printable(
            " < ".join(names[:CALLERS_SHOWN]) + (f" < ... {more} more" if more > 0 else "")
        )


def _name(place: CodePlace) -> str:
    return printable(str(place))


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def history_json(history: History) -> dict[str, Any]:
    """Return the document of ``inspector history --json``."""
    return {
        "schema": "inspector.history/1",
        "target": target_json(history.acquired),
        "words": [
            {
                "what": word.what,
                "address": f"{word.address:#x}",
                "physical": f"{word.physical:#x}",
                "value": f"{word.value:#x}",
            }
            for word in history.words
        ],
        "since": history.since,
        "until": history.until,
        "end": history.end,
        "complete": history.complete,
        "seconds": round(history.seconds, 3),
        "total": history.total,
        "elsewhere": history.elsewhere,
        "writes": [_write_json(write) for write in history.writes],
    }


def _write_json(write: Write) -> dict[str, Any]:
    return {
        "word": write.word,
        "count": write.count,
        "old": f"{write.old:#x}",
        "new": f"{write.new:#x}",
        "instruction": write.instruction.text if write.instruction else None,
        "opcodes": write.instruction.data.hex() if write.instruction else None,
        "of_kvm": write.of_kvm,
        **_place_json(write.where),
        "callers": [_place_json(place) for place in write.callers],
    }


def _place_json(place: CodePlace) -> dict[str, Any]:
    return {
        "address": f"{place.address:#x}",
        "function": place.function,
        "offset": place.offset,
        "module": place.module,
    }
