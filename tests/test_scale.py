"""Images made of arrays are consistent, have the requested size, and can be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fixtures.synthetic.scale import ScaleVm, main, scale_image
from inspector.checks.verdict import Verdict, judge
from inspector.cli import cli
from inspector.kvm.collect import collect, vm_list
from inspector.model.vm import EntryState
from inspector.structures.space import KernelSpace

PAGE_SIZES = (4096, 65536)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize(("per_slot", "stale"), [(1, 0), (3, 5), (1000, 0)])
def test_a_scale_image_is_what_was_asked_for(page_size: int, per_slot: int, stale: int) -> None:
    vm = ScaleVm(1, 2000, per_slot, guests=3, stale=stale)
    image = scale_image(vm, page_size)
    kernel = KernelSpace(image.memory, image.profile)
    (judged,) = judge(collect(kernel, vm_list(kernel))).vms
    assert judged.verdict is Verdict.CONSISTENT
    assert (judged.vm.gaps, judged.pending) == ((), ())
    counts = judged.counts
    slots = -(-2000 // per_slot)
    gone = sum(len(range(i, 2000, 5 * per_slot)) for i in range(per_slot, 2 * per_slot) if stale)
    assert (counts.entries, counts.slots, counts.longest) == (2000, slots, per_slot)
    assert (counts.live, counts.shadow_leaves) == (2000 - gone, 2000 - gone)
    assert counts.stale == ({EntryState.NO_LEAF: gone} if gone else {})
    assert all(nested.l1 is not None for nested in judged.vm.nested)


def test_more_entries_than_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="need 262145 pages"):
        scale_image(ScaleVm(1, 262145))


def test_the_file_opens_with_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "scale.core"
    main(["--entries", "500", "--per-slot", "2", "-o", str(path)])
    result = CliRunner().invoke(cli, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "SYNTHETIC" in result.stdout
    assert "verdict: consistent" in result.stdout
