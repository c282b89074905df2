"""Check one image in a process of its own, so that its memory can be measured.

python -m tests.bench.scaled FILE [--no-pass | --profile]
"""

from __future__ import annotations

import cProfile
import json
import pstats
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inspector.checks.verdict import judge
from inspector.dumps.elfcore import open_core
from inspector.kvm.snapshot import Vm
from inspector.memory.segments import SegmentedMemory
from inspector.options import Options
from inspector.session import acquire

WORD = 8
PIECE = 1 << 26
PASSES = 3
MOST = 10


def main() -> None:
    """Print as JSON: seconds of wall and CPU time, bytes of the arrays and of peak memory."""
    path = sys.argv[1]
    if "--profile" in sys.argv:
        print(json.dumps(_profile(path)))
        return
    began, cpu = time.perf_counter(), _used()
    acquired = acquire(path, Options())
    collected, collecting = time.perf_counter(), _used() - cpu
    judgement = judge(acquired.snapshot)
    ended, used = time.perf_counter(), _used() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    arrays = sum(map(_arrays, acquired.snapshot.vms))
    found = {}
    if "--no-pass" not in sys.argv:
        memory = open_core(Path(path)).memory
        _pass(memory)
        passes = []
        for _ in range(PASSES):
            before = time.process_time()
            _pass(memory)
            passes.append(time.process_time() - before)
        found = {"bytes": int(memory.sizes.sum()), "pass": min(passes)}
    print(
        json.dumps(
            found
            | {
                "wall": ended - began,
                "collect": collected - began,
                "cpu": float(used.sum()),
                "cpu collect": float(collecting[0]),
                "cpu judge": float(used[0] - collecting[0]),
                "cpu kernel": float(used[1]),
                "arrays": arrays,
                "peak": peak,
                "verdict": judgement.verdict.value,
            }
        )
    )


def _used() -> NDArray[np.float64]:
    """Return the CPU seconds of this process, in user space and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return np.array([usage.ru_utime, usage.ru_stime])


def _profile(path: str) -> dict[str, float]:
    """Return the functions that take the most time, with the seconds spent in each itself."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(lambda: judge(acquire(path, Options()).snapshot))
    taken: dict[str, float] = {}
    for (file, _, name), (_, _, seconds, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = name if file == "~" else f"{Path(file).stem}.{name}"
        taken[place] = taken.get(place, 0.0) + seconds
    most = sorted(taken, key=lambda place: -taken[place])
    return {place: round(taken[place], 3) for place in most[:MOST]}


def _arrays(vm: Vm) -> int:
    """Return the bytes of a VM's rmap, and of the arrays decoded from it and from tables."""
    rmaps = vm.rmaps
    tables = [vm.host, *(guest.shadow for guest in vm.nested)]
    tables += [guest.l1 for guest in vm.nested if guest.l1 is not None]
    return (
        sum(slot.npages for slot in vm.memslots) * WORD
        + sum(a.nbytes for a in (rmaps.memslot, rmaps.gfn, rmaps.where, rmaps.head, rmaps.start))
        + sum(a.nbytes for a in (rmaps.word, rmaps.node, rmaps.place))
        + sum(t.address.nbytes + t.entry.nbytes + t.shift.nbytes + t.where.nbytes for t in tables)
    )


def _pass(memory: SegmentedMemory) -> int:
    """Count the words that are not zero: one pass over the arrays."""
    found = 0
    for start, size in zip(memory.starts.tolist(), memory.sizes.tolist(), strict=True):
        for begin in range(start, start + size, PIECE):
            data = memory.read_many(
                np.array([begin], np.uint64), min(PIECE, start + size - begin) & -WORD
            ).data
            found += int(np.count_nonzero(data.reshape(-1).view(np.uint64)))
    return found


if __name__ == "__main__":
    main()
