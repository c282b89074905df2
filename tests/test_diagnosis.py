"""The report of ``inspector doctor`` about files; for machines see ``tests/live``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from inspector.capture import Capture, write_capture
from inspector.cli import cli
from inspector.diagnosis import NEXT, OF_FILE, OF_LIVE, StepOutcome, diagnose
from inspector.errors import Stage, TargetNotSupported
from inspector.options import Options
from inspector.structures.space import KernelSpace
from tests.fixtures import CAPTURES, DIRECTORY, SMALL, opened
from tests.memories import without


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name.split(".core")[0])
def test_every_capture_is_usable(path: Path) -> None:
    diagnosis = diagnose(str(path), Options())
    assert diagnosis.usable
    steps = [item.step for item in diagnosis.observations]
    assert steps[: len(OF_FILE) - 1] == [step.value for step in OF_FILE[:-1]]
    for item in diagnosis.observations:
        assert item.found
        assert bool(item.next) is (item.outcome is StepOutcome.REMARK)


def test_the_text_and_the_document_say_the_same() -> None:
    text = doctor(str(SMALL))
    assert text.exit_code == 0
    assert text.stdout.splitlines()[-1] == "usable"
    document = json.loads(doctor(str(SMALL), "--json").stdout)
    assert (document["schema"], document["usable"]) == ("inspector.doctor/1", True)
    vm = document["steps"][-1]
    assert vm["step"] == "VM lpid 1"
    assert vm["found"] == "radix, nesting enabled, 16 nested guests, 94 rmap slots"
    for step in document["steps"]:
        assert step["found"] in text.stdout


@pytest.mark.parametrize(
    ("name", "found", "action"),
    [
        ("powernv9-no-vms", "no VM runs", "start an L1 guest"),
        ("powernv9-two-vms", "nesting is not enabled", "cap-nested-hv=on"),
        ("powernv9-hash", "hash MMU", "disable_radix"),
    ],
)
def test_what_there_is_not_to_check_is_remarked(name: str, found: str, action: str) -> None:
    diagnosis = diagnose(str(DIRECTORY / f"{name}.core.zst"), Options())
    (remark,) = [item for item in diagnosis.observations if item.outcome is StepOutcome.REMARK]
    assert found in remark.found
    assert action in remark.next
    assert diagnosis.usable


def test_what_a_dump_lacks_is_remarked(tmp_path: Path) -> None:
    acquired = opened(SMALL)
    kernel = KernelSpace(acquired.memory, acquired.profile)
    (vm,) = acquired.snapshot.vms
    path = tmp_path / "holed"
    holed = without(acquired.memory, kernel.physical(vm.nested[0].shadow_pgtable), 8)
    write_capture(path, Capture(holed, acquired.profile, {}))
    shown = doctor(str(path))
    assert shown.exit_code == 0
    assert f"shadow table of nested guest {vm.nested[0].lpid}" in shown.stdout


@pytest.mark.parametrize(
    ("target", "step"),
    [
        ("no-such-file", Stage.FORMAT),
        ("/", Stage.FORMAT),
        ("/dev/null", Stage.FORMAT),
        ("/bin/sh", Stage.FORMAT),
        ("raw:/bin/sh@0", Stage.KERNEL),
        ("gdb:localhost", Stage.PORT),
        ("gdb:localhost:0", Stage.PORT),
        ("gdb:localhost:99999", Stage.PORT),
    ],
)
def test_a_target_that_is_none_is_told_at_which_step(target: str, step: Stage) -> None:
    shown = doctor(target, "--json")
    assert shown.exit_code == 3
    document = json.loads(shown.stdout)
    assert document["usable"] is False
    (failed,) = [item for item in document["steps"] if item["outcome"] == "failed"]
    assert failed["step"] == step.value
    assert failed["found"]
    assert failed["next"] == NEXT[step]
    after = document["steps"][document["steps"].index(failed) + 1 :]
    assert all(item["outcome"] == "not reached" for item in after)


def test_without_gdb_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    shown = doctor("gdb:127.0.0.1:1")
    assert shown.exit_code == 3
    assert "failed       GDB" in shown.stdout
    assert "next: install GDB" in shown.stdout


@pytest.mark.parametrize("step", list(Stage))
def test_every_step_has_a_next_one(step: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise TargetNotSupported("something", step)

    monkeypatch.setattr("inspector.diagnosis.acquire", fail)
    target = str(SMALL) if step in OF_FILE else "gdb:127.0.0.1:1"
    (failed,) = [
        item
        for item in diagnose(target, Options()).observations
        if item.outcome is StepOutcome.FAILED
    ]
    assert (failed.step, failed.found, failed.next) == (step.value, "something", NEXT[step])
    assert set(NEXT) == set(Stage) == {*OF_LIVE, *OF_FILE}
