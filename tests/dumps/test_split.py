"""The files of a split dump: together they are the whole dump, and missing files are named."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inspector.dumps.formats import open_dump
from inspector.errors import BadData, MemoryNotReadable
from inspector.memory.numbers import addresses
from tests.dumps.kdumpwriter import KdumpSpec, kdump

PAGES = {
    number: struct.pack("<Q", number) * 512 for number in range(24) if number not in (5, 11, 12)
}
WHOLE = KdumpSpec(PAGES, [5], count=24)
CUTS = ((0, 7), (7, 16), (16, 24))


def written(tmp_path: Path, *specs: KdumpSpec, name: str = "part") -> list[str]:
    paths = []
    for number, spec in enumerate(specs):
        path = tmp_path / f"{name}{number}"
        path.write_bytes(kdump(spec))
        paths.append(str(path))
    return paths


def parts(tmp_path: Path) -> list[str]:
    return written(tmp_path, *(replace(WHOLE, split=cut) for cut in CUTS))


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_together_they_are_the_whole_dump(tmp_path: Path, order: tuple[int, ...]) -> None:
    names = parts(tmp_path)
    split = open_dump("split:" + ",".join(names[i] for i in order))
    (whole,) = written(tmp_path, WHOLE, name="whole")
    same = open_dump(whole)
    assert (split.lacks, same.lacks) == ("", "")
    assert split.dump_level == same.dump_level

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, 25 * 4096), max_size=8), st.integers(1, 3 * 4096))
    def compare(where: list[int], length: int) -> None:
        ours = split.memory.read_many(addresses(where), length)
        theirs = same.memory.read_many(addresses(where), length)
        assert np.array_equal(ours.present, theirs.present)
        assert np.array_equal(ours.data[ours.present], theirs.data[theirs.present])
        for address in where:
            outcome = []
            for memory in (split.memory, same.memory):
                try:
                    outcome.append(memory.read(address, length).hex())
                except MemoryNotReadable as error:
                    outcome.append(error.reason)
            assert outcome[0] == outcome[1]

    compare()


def test_what_is_no_address_is_not_read(tmp_path: Path) -> None:
    memory = open_dump("split:" + ",".join(parts(tmp_path))).memory
    for address in ((1 << 64) - 4, 1 << 64, (1 << 64) + 5, -8):
        with pytest.raises(MemoryNotReadable):
            memory.read(address, 8)


def test_what_lacks_is_named(tmp_path: Path) -> None:
    first, second, third = parts(tmp_path)
    alone = open_dump(second)
    assert alone.kind.startswith("one file of a kdump-compressed dump")
    assert "physical 0x0 to 0x7000, 0x10000 to 0x18000 is in other files" in alone.lacks
    assert "split:FILE,FILE" in alone.lacks
    two = open_dump(f"split:{third},{first}")
    assert "physical 0x7000 to 0x10000 is in other files" in two.lacks
    assert two.memory.read(6 * 4096, 8) == struct.pack("<Q", 6)
    with pytest.raises(MemoryNotReadable, match="in another file of this split dump"):
        two.memory.read(7 * 4096, 8)


def test_files_of_no_one_dump_are_refused(tmp_path: Path) -> None:
    first, second, _ = parts(tmp_path)
    of_another = replace(WHOLE, split=CUTS[1], machine=b"ppc64")
    (other,) = written(tmp_path, of_another, name="other")
    (whole,) = written(tmp_path, WHOLE, name="whole")
    for target, why in (
        (f"split:{first},{second},{first}", "give each file once"),
        (f"split:{first}", "fewer than two files"),
        (f"split:{first},{other}", "not a file of the same split dump"),
        (f"split:{second},{whole}", "not a file of a split one"),
        (f"split:{second},{__file__}", "not a kdump-compressed dump"),
        (f"split:{second},{second}.none", "cannot open"),
    ):
        with pytest.raises(BadData, match=why):
            open_dump(target)
