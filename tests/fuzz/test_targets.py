"""A short campaign that is the same every time, and tests of the harness itself."""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fixtures.lab import fuzz, promise
from fixtures.lab.packages import LabError
from inspector.errors import BadData
from tests.fuzz.campaign import plain
from tests.fuzz.mutate import Fields, binary, json_tree, text
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from tests.fuzz.trial import SECONDS, Trial, memory_limit
from tests.profiles import examples

EXECUTIONS = examples(20)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_errors_of_the_inspector_comes_out(name: str) -> None:
    target = TARGETS[name]
    trial = Trial(target.run, target.allowed)
    with memory_limit():
        for data in itertools.islice(plain(target, seed=1), EXECUTIONS):
            trial(data)
    assert trial.failures == {}
    assert trial.runs == EXECUTIONS


@pytest.mark.parametrize("mutate", [binary(lambda data: [Fields((0, 4), 4, "<")]), json_tree, text])
def test_the_same_randomness_gives_the_same_input(mutate: object) -> None:
    assert callable(mutate)
    data = b'{"a": [1, 2, "three"], "b": {"c": null}}'
    made = {mutate(data, random.Random(seed)) for seed in range(40)}
    assert len(made) > 20
    assert made == {mutate(data, random.Random(seed)) for seed in range(40)}


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_of_any_length_can_be_changed(name: str) -> None:
    mutate = TARGETS[name].mutate
    for length in range(40):
        assert isinstance(mutate(bytes(length), random.Random(length)), bytes)


def tried(run: object) -> Trial:
    assert callable(run)
    trial = Trial(run)
    with memory_limit():
        trial(b"")
        trial(b"")
    return trial


def kinds(trial: Trial) -> set[str]:
    return {kind.split()[0] for kind in trial.failures}


def test_what_is_an_error_of_the_inspector_is_no_failure() -> None:
    def refuse(data: bytes) -> None:
        raise BadData("no")

    trial = tried(refuse)
    assert (trial.runs, trial.refused, trial.failed) == (2, 2, 0)


def test_another_error_is_a_failure_and_its_input_kept() -> None:
    def stumble(data: bytes) -> int:
        return data[0]

    trial = tried(stumble)
    assert trial.failed == 2
    assert trial.failures == {"IndexError at the target itself": b""}


@pytest.mark.slow
def test_absurd_sizes_are_failures() -> None:
    assert kinds(tried(lambda data: np.zeros(1 << 40, dtype=np.uint8))) == {"MemoryError"}
    assert kinds(tried(lambda data: bytearray(1 << 28))) == {"TooMuchMemoryError"}


def test_a_hang_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(data: bytes) -> None:
        for _ in itertools.count():
            pass

    assert SECONDS > 1
    monkeypatch.setattr("tests.fuzz.trial.SECONDS", 0.02)
    assert kinds(tried(spin)) == {"Hang"}


@pytest.mark.slow
def test_the_command_runs_what_is_asked_for_and_records_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INSPECTOR_LAB_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(promise, "DIRECTORY", tmp_path)
    chosen = ["VMCOREINFO", "raw image"]
    options = {"executions": 300, "seconds": 60.0, "seed": 1, "jobs": 2, "record": True}
    assert fuzz.run(argparse.Namespace(target=chosen, **options)) == 0
    (record,) = promise.read_all(tmp_path)
    assert {row["what"]: (row["runs"], row["failed"]) for row in record.rows} == dict.fromkeys(
        chosen, (300, 0)
    )
    assert "raw image: 300 executions, 0 failed" in capsys.readouterr().out
    with pytest.raises(LabError, match="there is no nonsense"):
        fuzz.run(argparse.Namespace(target=["nonsense"], **options))


def test_inputs_are_changed_further() -> None:
    def longer(data: bytes, chance: random.Random) -> bytes:
        return data + b"x"

    made: Iterator[bytes] = plain(Target(lambda: [b""], print, longer), seed=1)
    assert max(map(len, itertools.islice(made, 300))) > 2
