"""The real Linux stack: L0, an L1 in QEMU under its KVM, an L2 under L1's."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.lab import linuxstack
from inspector.capture import Capture, write_capture
from inspector.checks.verdict import Verdict, judge
from inspector.session import Options, acquire
from tests.live.tools import slots_of

pytestmark = pytest.mark.usefixtures("_lab_installed")


def test_every_leaf_is_covered(boot: object, tmp_path: Path) -> None:
    with linuxstack.start() as machine:
        options = Options(Path(machine.state.vmlinux), Path(machine.state.modules))
        acquired = acquire(machine.target, options)
        judgement = judge(acquired.snapshot)
        assert judgement.verdict is Verdict.CONSISTENT
        (vm,) = judgement.vms
        counts = vm.counts
        assert counts.entries > 10_000
        assert counts.shadow_leaves > 10_000
        stale = sum(counts.stale.values()) / counts.entries
        assert 0.1 < stale < 0.6
        assert counts.live >= counts.shadow_leaves
        assert machine.qmp.execute("query-status")["status"] == "running"

        path = tmp_path / "stack.core.zst"
        write_capture(path, Capture(acquired.memory, acquired.profile, {}))
        offline = acquire(str(path), Options()).snapshot
        assert slots_of(offline.vms[0]) == slots_of(acquired.snapshot.vms[0])

        through_gdb = judge(
            acquire(machine.target, Options(options.kernel, options.modules, "gdb")).snapshot
        )
        assert through_gdb.verdict is Verdict.CONSISTENT
