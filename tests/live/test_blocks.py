"""Memory in several blocks of QEMU, which touch in physical addresses and not in QEMU's own."""

from __future__ import annotations

import pytest

from fixtures.lab.blocks import BLOCKS, STAYS
from fixtures.lab.machine import Machine, MachineSpec
from inspector.checks.verdict import Verdict, judge
from inspector.live.mtree import parse_mtree
from inspector.options import Options
from inspector.session import acquire
from tests.live.tools import Lab, assert_words_agree


@pytest.mark.usefixtures("_own_state")
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_read_where_it_is(name: str) -> None:
    blocks = BLOCKS[name]
    spec = MachineSpec(
        machine="pseries",
        memory=blocks.memory,
        extra=blocks.arguments,
        options=STAYS,
        name="blocks",
    )
    with Machine.start(spec, wait=240) as machine:
        lab = Lab(machine)
        shown = machine.qmp.execute("human-monitor-command", **{"command-line": "info mtree -f"})
        assert len(parse_mtree(shown).pieces.starts) > 1
        expected = machine.expectation
        for read_path in ("direct", "gdb"):
            snapshot = acquire(lab.target, Options(read_path=read_path)).snapshot
            assert_words_agree(snapshot, expected)
            assert judge(snapshot).verdict is Verdict.CONSISTENT
        lab.assert_untouched()
