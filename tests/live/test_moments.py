"""Moments that follow each other: each one is equal to a moment that is read by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inspector.kvm.collect import collect, vm_list
from inspector.live.direct import DirectMemory
from inspector.moment import Moment, take
from inspector.options import Options
from inspector.session import attached
from inspector.structures.space import KernelSpace
from tests.alike import assert_alike
from tests.live.tools import Lab
from tests.profiles import examples

pytestmark = pytest.mark.slow

MOMENTS = examples(16)


@pytest.mark.parametrize("idle", ["churn", "work"])
def test_what_follows_is_what_would_be_read_anew(boot: Callable[..., Lab], idle: str) -> None:
    lab = boot("mixed", idle=idle)
    with attached(lab.target, Options(kernel=Path(lab.machine.state.vmlinux))) as attachment:
        machine, profile = attachment.machine, attachment.known.profile
        assert isinstance(machine.memory, DirectMemory)
        moment: Moment | None = None
        same = 0
        for _ in range(MOMENTS):
            before, moment = moment, take(machine, profile, before=moment)
            kernel = KernelSpace(moment.memory, profile)
            assert_alike(moment.snapshot, collect(kernel, vm_list(kernel)))
            if before is not None:
                same += before.snapshot.vms[0] is moment.snapshot.vms[0]
            time.sleep(0.05)
        assert same > MOMENTS // 2 if idle == "work" else same < MOMENTS - 1
    lab.assert_untouched()
