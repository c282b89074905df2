"""A real Linux stack: how long a command stops it, and how long a person waits."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fixtures.lab import packages
from fixtures.lab.machine import Machine, stopped_times
from fixtures.lab.stub import Stub
from inspector.checks.verdict import NODE_SIZE, counts_of
from inspector.checks.view import CheckedVm
from inspector.image.cache import directory
from inspector.live.connection import Connection
from inspector.live.direct import hva_of
from inspector.live.mi import GdbProcess
from inspector.live.processes import process_behind
from inspector.memory.segments import SegmentedMemory
from inspector.options import Options
from inspector.session import acquire
from tests.bench.measure import Row, best, run

__all__ = ["lists_rows", "rows"]

PAGE = 1 << 12
WORD = 8
PACKET = 1 << 11
"""Bytes of memory in the largest packet that QEMU's stub takes."""
DEBUG_FILES = ("vmlinux", "kvm", "kvm-hv")


def rows(machine: Machine, repeat: int) -> Iterator[Row]:
    """Measure on a running machine."""
    target = machine.target
    acquired = acquire(target, Options())
    memory = acquired.memory
    yield _direct(machine, memory, repeat)
    yield _through_gdb(machine, memory, repeat)
    yield from _process(machine, acquired.profile.vmcoreinfo, repeat)


def lists_rows(machine: Machine, repeat: int) -> Iterator[Row]:
    """Measure on a machine with many entries, most of them in long lists."""
    run("-m", "inspector", "check", machine.target)
    taken = best(repeat, lambda: run("-m", "inspector", "check", machine.target))
    acquired = acquire(machine.target, Options())
    counts = [
        counts_of(CheckedVm(vm, acquired.snapshot.page_shift)) for vm in acquired.snapshot.vms
    ]
    one = max(counts, key=lambda count: count.entries)
    longest = ", ".join(str(entries) for _, entries in one.longest_lists)
    yield Row(
        f"{one.entries:,} entries, made by the exerciser: check",
        taken,
        "s",
        "one NumPy pass over the same bytes",
        best(repeat, lambda: _scanned(acquired.memory)),
        goal=1.5,
        parts={
            "python with numpy and click": best(repeat, lambda: run("-c", "import numpy, click"))
        },
        note=f"{one.lists:,} lists, the longest of {longest}: so many the next insertion walks; "
        f"{one.nodes:,} nodes, {(one.nodes * NODE_SIZE) >> 10} KiB of kernel memory "
        f"in {one.node_pages} pages; {int(acquired.memory.sizes.sum()) / 1e6:.1f} MB read; "
        f"stopped for {1000 * (acquired.origin.stopped_seconds or 0):.0f} ms",
        why="Python and GDB have to start, and a list is followed node by node, before the stop "
        "and after it",
    )


def _scanned(memory: SegmentedMemory) -> float:
    """Return how long NumPy takes to count the bytes' words that are not zero."""
    data = [
        np.frombuffer(memory.read(start, size & -WORD), dtype=np.uint64)
        for start, size in zip(memory.starts.tolist(), memory.sizes.tolist(), strict=True)
    ]
    words = np.concatenate(data)
    began = time.perf_counter()
    np.count_nonzero(words)
    return time.perf_counter() - began


def _stood_still(machine: Machine) -> float:
    """Return how long the machine was stopped since the last call, by QEMU's own clock."""
    return sum(stopped_times(machine.qmp.events(wait=0.2))) * 1000


def _stopped_by(machine: Machine, *options: str) -> float:
    _stood_still(machine)
    run("-m", "inspector", "check", machine.target, *options)
    return _stood_still(machine)


def _direct(machine: Machine, memory: SegmentedMemory, repeat: int) -> Row:
    value = best(repeat, lambda: _stopped_by(machine, "--read-path", "direct"))
    parts = {
        "attach and detach": best(repeat, lambda: _attached(machine, interrupt=False)),
        "interrupt and go on": best(repeat, lambda: _attached(machine, interrupt=True)),
        "one copy of the bytes": best(repeat, lambda: _copied(machine, memory)),
    }
    return Row(
        "stopped, from the process",
        value,
        "ms",
        "GDB that attaches, goes on, interrupts and goes on; a copy of the bytes",
        sum(parts.values()),
        at_most=2,
        goal=20,
        parts=parts,
        note=f"{int(memory.sizes.sum()) / 1e6:.1f} MB",
        why="GDB's attaching is most of it, and QEMU's stub answers GDB's questions one by one",
    )


def _attached(machine: Machine, interrupt: bool) -> float:
    """Return how long a GDB that does nothing else stops the machine."""
    # GDB is confined without a network, so this time includes the relay that it needs
    relay = Connection("127.0.0.1", machine.gdb_port)
    gdb = GdbProcess()
    try:
        gdb.command("-gdb-set mi-async on")
        gdb.command("-gdb-set confirm off")
        _stood_still(machine)
        gdb.command(f"-target-select remote {relay.socket_name}")
        gdb.resume()
        attached = _stood_still(machine)
        gdb.command("-exec-interrupt")
        gdb.wait_stopped()
        gdb.resume()
        return _stood_still(machine) if interrupt else attached
    finally:
        relay.close()
        gdb.close()


def _copied(machine: Machine, memory: SegmentedMemory) -> float:
    """Return how long one copy of the pages that hold the bytes takes."""
    first = memory.starts // np.uint64(PAGE)
    last = (memory.starts + memory.sizes - np.uint64(1)) // np.uint64(PAGE)
    pages = sorted({p for a, b in zip(first, last, strict=True) for p in range(int(a), int(b) + 1)})
    runs: list[list[int]] = []
    for page in pages:
        if runs and sum(runs[-1]) == page:
            runs[-1][1] += 1
        else:
            runs.append([page, 1])
    base = _hva(machine)
    buffer = bytearray(PAGE * len(pages))
    views = []
    place = 0
    for page, count in runs:
        views.append((memoryview(buffer)[place : place + PAGE * count], base + PAGE * page))
        place += PAGE * count
    file = os.open(f"/proc/{process_behind(machine.gdb_port)}/mem", os.O_RDONLY)
    try:
        began = time.perf_counter()
        for view, where in views:
            os.preadv(file, [view], where)
        return (time.perf_counter() - began) * 1000
    finally:
        os.close(file)


def _hva(machine: Machine) -> int:
    answer = machine.qmp.execute("human-monitor-command", **{"command-line": "gpa2hva 0x0"})
    return hva_of(str(answer))


def _through_gdb(machine: Machine, memory: SegmentedMemory, repeat: int) -> Row:
    return Row(
        "stopped, through GDB",
        best(repeat, lambda: _stopped_by(machine, "--read-path", "gdb")),
        "ms",
        "the same bytes over the bare remote protocol",
        best(repeat, lambda: _bare(machine, memory)),
        at_most=1.3,
        why="GDB's own packets and the walk, level by level, are part of the stop",
    )


def _bare(machine: Machine, memory: SegmentedMemory) -> float:
    """Return how long a client of the stub that does nothing else takes to read the bytes."""
    _stood_still(machine)
    with Stub(machine.gdb_port) as stub:
        stub.packet("Qqemu.PhyMemMode:1")
        for start, size in zip(memory.starts.tolist(), memory.sizes.tolist(), strict=True):
            for begin in range(start, start + size, PACKET):
                stub.packet(f"m{begin:x},{min(PACKET, start + size - begin):x}")
        stub.packet("Qqemu.PhyMemMode:0")
    return _stood_still(machine)


def _process(machine: Machine, vmcoreinfo: str, repeat: int) -> Iterator[Row]:
    def check(cold: bool = False) -> float:
        if cold:
            for path in directory().glob("*.json"):
                path.unlink()
        return run("-m", "inspector", "check", machine.target)

    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            cold = best(repeat, lambda: check(cold=True))
            warm = best(repeat, check)
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before
        parts = {
            "python with numpy and click": best(repeat, lambda: run("-c", "import numpy, click")),
        }
        bound, note = _drgn(machine, Path(folder) / "vmcoreinfo", vmcoreinfo, repeat)
        peer = "a drgn script that lists the words"
        yield Row(
            *("check, warm cache", warm, "s", peer, bound),
            at_most=1,
            parts=parts,
            note=note,
            why="Python loads NumPy and click, then GDB starts, then it attaches; the script does "
            "without the last two",
        )
        yield Row("check, no cache, no files", cold, "s", goal=2)


def _drgn(machine: Machine, path: Path, vmcoreinfo: str, repeat: int) -> tuple[float | None, str]:
    folder = packages.cache_dir() / "debug" / machine.state.release
    files = [folder / f"{name}{'' if name == 'vmlinux' else '.ko'}.debug" for name in DEBUG_FILES]
    try:
        import drgn  # noqa: F401
    except ImportError:
        return None, "drgn is not installed"
    if not all(file.exists() for file in files):
        return None, f"no debug files in {folder}"
    path.write_text(vmcoreinfo)
    size = machine.qmp.execute("query-memory-size-summary")["base-memory"]
    given = (str(machine.pid), hex(_hva(machine)), str(size), str(path), *map(str, files))
    return best(repeat, lambda: run("-m", "tests.bench.drgnlist", *given)), ""
