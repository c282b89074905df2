"""The real Linux stack: L0, an L1 in QEMU under its KVM, an L2 under L1's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from fixtures.lab import linuxstack
from fixtures.lab.machine import Machine
from fixtures.lab.opinions.byradix import tables
from inspector.capture import Capture, write_capture
from inspector.checks.verdict import Verdict, judge
from inspector.options import Options
from inspector.questions.lookup import Kind, Question, lookup
from inspector.regions import linear_to_physical
from inspector.session import acquire
from tests.live.tools import slots_of

pytestmark = [pytest.mark.usefixtures("_lab_installed"), pytest.mark.slow]


@pytest.fixture(scope="module")
def stack(_own_state: None) -> Iterator[Machine]:
    with linuxstack.start() as machine:
        yield machine


def test_every_leaf_is_covered(stack: Machine, tmp_path: Path) -> None:
    options = Options(kernel=Path(stack.state.vmlinux), modules=Path(stack.state.modules))
    acquired = acquire(stack.target, options)
    judgement = judge(acquired.snapshot)
    assert judgement.verdict is Verdict.CONSISTENT
    (vm,) = judgement.vms
    counts = vm.counts
    assert counts.entries > 10_000
    assert counts.shadow_leaves > 10_000
    stale = sum(counts.stale.values()) / counts.entries
    assert 0.1 < stale < 0.6
    assert counts.live >= counts.shadow_leaves
    assert stack.qmp.execute("query-status")["status"] == "running"

    path = tmp_path / "stack.core.zst"
    write_capture(path, Capture(acquired.memory, acquired.profile, {}))
    offline = acquire(str(path), Options()).snapshot
    assert slots_of(offline.vms[0]) == slots_of(acquired.snapshot.vms[0])

    through_gdb = judge(
        acquire(
            stack.target, Options(kernel=options.kernel, modules=options.modules, read_path="gdb")
        ).snapshot
    )
    assert through_gdb.verdict is Verdict.CONSISTENT


def _words_through_gdb(port: int, places: list[int]) -> list[int]:
    """Return the doublewords at physical addresses, big-endian as page tables are."""
    commands = [
        "set architecture powerpc:common64",
        "set endian big",
        f"target remote 127.0.0.1:{port}",
        "maintenance packet Qqemu.PhyMemMode:1",
        *(f"x/gx {place:#x}" for place in places),
        "maintenance packet Qqemu.PhyMemMode:0",
        "detach",
    ]
    arguments = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        ["gdb-multiarch", "-nx", "-batch", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = dict(re.findall(r"^(0x[0-9a-f]+).*:\s+(0x[0-9a-f]+)$", done.stdout, re.MULTILINE))
    return [int(found[f"{place:#x}"], 16) for place in places]


def test_a_page_has_one_chain_by_all_its_addresses(stack: Machine) -> None:
    options = Options(kernel=Path(stack.state.vmlinux), modules=Path(stack.state.modules))
    linuxstack.command(stack, "freeze")
    try:
        shown = tables(linuxstack.command(stack, "radix").splitlines())
        snapshot = acquire(stack.target, options).snapshot
        (vm,) = snapshot.vms
        (nested,) = vm.nested
        assert len(shown[None]) == len(vm.host)
        assert len(shown[nested.lpid]) == len(nested.shadow)
        entries: dict[int, int] = {}
        for address in Random(5).sample(nested.shadow.address.tolist(), 8):
            (chain,) = lookup(snapshot, Question(Kind.L2, address, nested.lpid)).l2_pages
            assert chain.host is not None
            assert chain.shadow is not None
            assert chain.l1_address is not None
            assert chain.agrees
            for question in (
                Question(Kind.GPA, chain.l1_address),
                Question(Kind.HPA, chain.shadow.leaf.frame),
            ):
                assert chain in lookup(snapshot, question, None).l2_pages
            for lpid, found in ((None, chain.host), (nested.lpid, chain.shadow)):
                leaf = found.leaf
                assert shown[lpid][leaf.address] == (leaf.entry, leaf.shift)
                entries[found.where] = leaf.entry
            for entry in chain.entries:
                if entry.node:
                    kept = int.from_bytes(entry.word.to_bytes(8, "little"), "big")
                    entries[linear_to_physical(entry.place)] = kept
        assert _words_through_gdb(stack.gdb_port, list(entries)) == list(entries.values())
    finally:
        linuxstack.command(stack, "thaw")


def test_l1_and_l2_run_the_same_build(
    stack: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the host's own kernel is taken for the host's kernel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = acquire(stack.target, Options())
    assert found.origin.layout == "the target's memory"
    files = acquire(
        stack.target, Options(kernel=Path(stack.state.vmlinux), modules=Path(stack.state.modules))
    )
    symbols, named = (one.profile.to_json()["symbols"] for one in (found, files))
    assert symbols.items() >= {(name, named[name]) for name in ("modules", "linux_banner")}
    assert sum(len(vm.rmaps) for vm in found.snapshot.vms) > 10_000
