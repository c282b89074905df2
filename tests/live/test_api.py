"""The interface for scripts on a live machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import inspector
from tests.live.tools import Lab
from tests.test_api import EXAMPLES, run_example


def test_the_example_of_a_machine_over_time(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")
    host = inspector.open(lab.target)
    entries = sum(vm.rmaps.word.size for vm in host.vms)
    assert entries
    lines = run_example(EXAMPLES[2].replace("gdb:127.0.0.1:1234", lab.target)).splitlines()
    assert [int(line.split()[0]) for line in lines] == [entries] * 3
    lab.assert_untouched()


def test_the_machine_goes_on_whatever_happens_in_the_block(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")

    def fails() -> None:
        with inspector.attach(lab.target) as machine:
            assert machine.read().vms
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    lab.assert_untouched()
