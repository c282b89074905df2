"""Check one image in a process of its own, so that its memory can be told.

python -m tests.bench.scaled FILE [--no-pass]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from inspector.checks.verdict import judge
from inspector.kvm.snapshot import Vm
from inspector.memory.elfcore import open_core
from inspector.memory.segments import SegmentedMemory
from inspector.session import Options, acquire

WORD = 8
PIECE = 1 << 26


def main() -> None:
    """Print JSON: seconds of wall and CPU time, bytes of the arrays and of memory at its peak."""
    path = sys.argv[1]
    began, cpu = time.perf_counter(), time.process_time()
    acquired = acquire(path, Options())
    collected = time.perf_counter()
    judgement = judge(acquired.snapshot)
    ended, used = time.perf_counter(), time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    arrays = sum(map(_arrays, acquired.snapshot.vms))
    found = {}
    if "--no-pass" not in sys.argv:
        memory = open_core(Path(path)).memory
        _pass(memory)
        cpu = time.process_time()
        _pass(memory)
        found = {"bytes": int(memory.sizes.sum()), "pass": time.process_time() - cpu}
    print(
        json.dumps(
            found
            | {
                "wall": ended - began,
                "cpu": used,
                "collect": collected - began,
                "judge": ended - collected,
                "arrays": arrays,
                "peak": peak,
                "verdict": judgement.verdict.value,
            }
        )
    )


def _arrays(vm: Vm) -> int:
    """Return the bytes of a VM's rmap arrays, and of what they and its tables are decoded to."""
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
    """Count the words that are not zero."""
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
