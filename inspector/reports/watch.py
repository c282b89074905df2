"""The reports of ``inspector watch``: a picture in a terminal, lines of text, and of JSON."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inspector.errors import printable
from inspector.watch import Sample, VmSample

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["HEADING", "Picture", "sample_json", "sample_line"]

KEPT = 60
"""How many samples back a curve goes."""

BARS = "▁▂▃▄▅▆▇█"
LISTS_SHOWN = 3

HEADING = (
    "    time   VM  guests  entries     live    stale  leaves  longest"
    "  inserted  removed  faults/s  stopped"
)


def sample_line(sample: Sample) -> list[str]:
    """Return a line for each VM, in the columns of ``HEADING``."""
    time = f"{sample.seconds:7.1f}s"
    stopped = f"{sample.stopped_seconds * 1000:.1f}ms"
    if not sample.vms:
        return [f"{time}  no VMs {stopped:>87}"]
    return [
        f"{time} {vm.lpid:4} {vm.nested:7} {vm.counts.entries:8} {vm.counts.live:8} "
        f"{sum(vm.counts.stale.values()):8} {vm.counts.shadow_leaves:7} {vm.counts.longest:8} "
        f"{_number(vm.added):>9} {_number(vm.gone):>8} {_rate(vm):>9} {stopped:>8}"
        + ("  mmu_lock held" if vm.locked else "")
        for vm in sample.vms
    ]


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _rate(vm: VmSample) -> str:
    return "-" if vm.faults_per_second is None else f"{vm.faults_per_second:.1f}"


def sample_json(sample: Sample) -> dict[str, Any]:
    """Return one line of ``inspector watch --jsonl``."""
    return {
        "schema": "inspector.watch/1",
        "target": sample.target,
        "number": sample.number,
        "time": sample.time.isoformat(timespec="milliseconds"),
        "seconds": round(sample.seconds, 3),
        "stopped_ms": round(sample.stopped_seconds * 1000, 3),
        "stops": sample.stops,
        "took_ms": round(sample.took_seconds * 1000, 3),
        "notes": list(sample.notes),
        "vms": [_vm_json(vm) for vm in sample.vms],
    }


def _vm_json(vm: VmSample) -> dict[str, Any]:
    counts = vm.counts
    return {
        "vm_lpid": vm.lpid,
        "address": f"{vm.address:#x}",
        "mmu_lock_held": vm.locked,
        "nested": vm.nested,
        "slots": counts.slots,
        "entries": counts.entries,
        "live": counts.live,
        "stale": sum(counts.stale.values()),
        "stale_by_reason": {state.name.lower(): n for state, n in counts.stale.items()},
        "not_known": counts.unknown,
        "shadow_leaves": counts.shadow_leaves,
        "host_leaves": counts.host_leaves,
        "longest_lists": [{"gfn": f"{one.gfn:#x}", "entries": one.entries} for one in vm.longest],
        "inserted": vm.added,
        "removed": vm.gone,
        "leaves_made": vm.leaves,
        "faults_per_second": None
        if vm.faults_per_second is None
        else round(vm.faults_per_second, 3),
        "unread": vm.unread,
    }


class Picture:
    """What is shown in a terminal: a table, and for each VM the course of its entries."""

    def __init__(self) -> None:
        self._course: dict[int, deque[int]] = {}

    def of(self, sample: Sample) -> RenderableType:
        """Return the picture of the latest sample."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        head = Text.assemble(
            (printable(sample.target), "bold"),
            f"  Linux {printable(sample.release)}",
        )
        state = Text(
            f"sample {sample.number + 1}, {sample.seconds:.1f} s, "
            f"machine stopped for {sample.stopped_seconds * 1000:.1f} ms, "
            f"read from {printable(sample.read_path)}"
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in (
            "VM",
            "guests",
            "entries",
            "live",
            "stale",
            "leaves",
            "longest",
            "inserted",
            "removed",
            "faults/s",
        ):
            table.add_column(name, justify="right", no_wrap=True)
        for vm in sample.vms:
            counts = vm.counts
            table.add_row(
                f"lpid {vm.lpid}",
                str(vm.nested),
                str(counts.entries),
                Text(str(counts.live), "green"),
                Text(str(sum(counts.stale.values())), "yellow"),
                str(counts.shadow_leaves),
                str(counts.longest),
                _number(vm.added),
                _number(vm.gone),
                _rate(vm),
            )
        parts: list[RenderableType] = [head, state, Text(), table]
        parts += [Text(line) for line in self._details(sample)]
        if not sample.vms:
            parts.append(Text("no VMs"))
        parts += [Text(f"note: {printable(note)}", "yellow") for note in sample.notes]
        parts.append(Text("Ctrl-C ends; the machine continues to run", "dim"))
        return Group(*parts)

    def _details(self, sample: Sample) -> list[str]:
        lines = []
        for vm in sample.vms:
            course = self._course.setdefault(vm.address, deque(maxlen=KEPT))
            course.append(vm.counts.entries)
            lists = ", ".join(
                f"gfn {one.gfn:#x}: {one.entries}" for one in vm.longest[:LISTS_SHOWN]
            )
            lines += ["", f"lpid {vm.lpid}  entries {curve(course)}"]
            lines.append(f"  longest lists  {lists or 'none'}")
            if vm.locked:
                lines.append("  mmu_lock was held: the sample may be half way through a change")
            if vm.unread:
                lines.append(f"  {vm.unread} parts could not be read (inspector check names them)")
        return lines


def curve(values: Sequence[int]) -> str:
    """Draw values as bars, scaled between the smallest and the largest."""
    low, high = min(values), max(values)
    steps = len(BARS) - 1
    bars = "".join(BARS[(value - low) * steps // (high - low or 1)] for value in values)
    return f"{bars}  {low}..{high}"
