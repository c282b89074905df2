"""Faults in the running kernel break the invariant that they must break."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.lab.command import main
from fixtures.lab.faults import campaign
from fixtures.lab.faults.base import Write
from fixtures.lab.faults.inject import FAULTS, put
from fixtures.lab.machine import Machine, MachineSpec
from fixtures.lab.packages import LabError
from fixtures.lab.stub import Stub
from tests.live.tools import Lab

pytestmark = pytest.mark.slow

IN_CODE = ("removal-skipped", "unaligned-index", "released-guest")
"""One for each kind of scenario; `lab faults --run` tries them all."""


def test_faults_in_data(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")
    outcomes = list(campaign.with_data_faults(lab.machine))
    assert [(o.fault.name, o.seen) for o in outcomes if not o.caught] == []
    lab.assert_untouched()


@pytest.mark.parametrize("name", IN_CODE)
def test_faults_in_code(boot: Callable[..., Lab], name: str) -> None:
    outcome = campaign.with_code_fault(FAULTS[name])
    assert outcome.caught, outcome.seen


def test_by_command(boot: Callable[..., Lab], capsys: pytest.CaptureFixture[str]) -> None:
    with Machine.start(MachineSpec(scenario="singles", hold=True, name="held")) as machine:
        assert not machine.expectation.complete
        assert main(["inject", "held", "insertion-skipped"]) == 0
        assert "WROTE to held" in capsys.readouterr().err
        assert main(["release", "held"]) == 0
        assert machine.expectation.complete
        seen, leaves = campaign.check(machine), machine.expectation.leaves
    assert seen.code == 1
    assert seen.findings == {"shadow-leaf-covered": len(leaves)}


def test_nothing_is_written_over_something_else(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")
    with Stub(lab.machine.gdb_port) as stub:
        before = stub.read_physical(0x1000, 16)
        other = bytes(byte ^ 0xFF for byte in before)
        good = Write(0x1000, before[:8], other[:8], "what is there")
        bad = Write(0x1008, other[8:], before[8:], "what is not")
        with pytest.raises(LabError, match="nothing written"):
            put(stub, [good, bad])
        assert stub.read_physical(0x1000, 16) == before
    lab.assert_untouched()
