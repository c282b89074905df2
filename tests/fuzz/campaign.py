"""Many executions of targets, each in a process of its own: ``python -m tests.fuzz.campaign``.

With the optional library atheris, inputs that reach new code are kept and
changed further; without it, only the first inputs are changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.trial import Trial, memory_limit

if TYPE_CHECKING:
    from tests.fuzz.target import Target

__all__ = ["Outcome", "folder_of", "plain"]

OURS = 0.7
"""The share of changes that are made by the target's own mutator."""
KEPT, POOL = 0.1, 256
"""Without guidance: the share of inputs that are changed further, and how many are at once."""
WRITTEN_EVERY = 2000
PRIORITY = 15
"""The niceness of the campaign: other work on this host comes first."""
WALL_LIMIT = 3600
"""Seconds after which a process is killed that is stuck where no signal reaches it."""
CLOCK_EVERY = 10


@dataclass
class Outcome:
    """The outcome of a campaign against one target.

    ``slowest`` is in milliseconds of CPU time, ``peak`` in KiB, both of one
    execution; ``kinds`` are those of the failures.
    """

    runs: int
    failed: int
    refused: int
    slowest: float
    peak: int
    guided: bool
    kinds: Sequence[str]


def plain(target: Target, seed: int) -> Iterator[bytes]:
    """Yield the first inputs, then changed ones without end, some of them changed many times."""
    chance = random.Random(seed)
    pool = list(target.seeds())
    first = len(pool)
    yield from pool
    while True:
        data = target.mutate(chance.choice(pool), chance)
        yield data
        if chance.random() < KEPT:
            pool[first:] = [*pool[first:][1 - POOL :], data]


class _Campaign:
    """Executions of one target, until there are enough or the time is over."""

    def __init__(self, target: Target, options: argparse.Namespace, guided: bool) -> None:
        self._trial = Trial(target.run, target.allowed)
        self._options = options
        self._guided = guided
        self._end = time.monotonic() + options.seconds

    def __call__(self, data: bytes) -> None:
        self._trial(bytes(data))
        runs = self._trial.runs
        over = runs % CLOCK_EVERY == 0 and time.monotonic() > self._end
        if runs % WRITTEN_EVERY == 0 or over or runs >= self._options.executions:
            self._write()
        if over or runs >= self._options.executions:
            from tests.fuzz.target import folder

            shutil.rmtree(folder(), ignore_errors=True)
            # there is no other way to leave the fuzzer's own loop
            os._exit(0)

    def _write(self) -> None:
        trial = self._trial
        outcome = Outcome(
            *(trial.runs, trial.failed, trial.refused),
            *(round(trial.slowest * 1000, 1), trial.peak >> 10, self._guided),
            sorted(trial.failures),
        )
        (self._options.folder / "outcome.json").write_text(json.dumps(asdict(outcome)))
        for kind, data in trial.failures.items():
            name = "".join(letter if letter.isalnum() else "-" for letter in kind)
            (self._options.folder / f"failure-{name}").write_bytes(data)


def _guided(target: Target, options: argparse.Namespace) -> None:
    import atheris

    seeds = target.seeds()
    corpus = options.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def mutate(data: bytes, limit: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < OURS:
            return target.mutate(bytes(data), chance)[:limit]
        changed: bytes = atheris.Mutate(data, limit)
        return changed

    limits = {
        "max_len": max(map(len, seeds)) + (1 << 12),
        "len_control": 0,
        "seed": options.seed,
        "rss_limit_mb": 0,
        "timeout": WALL_LIMIT,
        "detect_leaks": 0,
        "artifact_prefix": f"{options.folder}/",
    }
    arguments = [sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in limits.items())]
    campaign = _Campaign(target, options, True)

    def limited(data: bytes) -> None:
        # a limit for each execution: the memory of the fuzzer itself grows with their number
        with memory_limit():
            campaign(data)

    atheris.Setup(arguments, limited, custom_mutator=mutate)
    atheris.Fuzz()


def _unguided(target: Target, options: argparse.Namespace) -> None:
    campaign = _Campaign(target, options, False)
    with memory_limit():
        for data in plain(target, options.seed):
            campaign(data)


def _all_targets() -> tuple[Mapping[str, Target], bool]:
    """Return the targets, and whether the inspector's code reports which of it was reached."""
    try:
        import atheris
    except ModuleNotFoundError:
        from tests.fuzz.targets import TARGETS

        return TARGETS, False
    with atheris.instrument_imports(include=["inspector"]):
        from tests.fuzz.targets import TARGETS as INSTRUMENTED
    return INSTRUMENTED, True


def _begin(name: str, target: Target, guided: bool, options: argparse.Namespace) -> int:
    """Start a campaign as a process in a session of its own, and return the process number."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    os.nice(PRIORITY)
    options.folder = folder_of(options.folder, name)
    with (options.folder / "log").open("wb") as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    try:
        (_guided if guided else _unguided)(target, options)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def folder_of(folder: Path, target: str) -> Path:
    """Return the folder of the inputs and the outcome of campaigns against a target."""
    return folder / re.sub(r"\W+", "-", target)


def main() -> None:
    """Run campaigns; print the name of each target and how its process ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", nargs="+")
    parser.add_argument("--executions", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    options = parser.parse_args()
    targets, guided = _all_targets()
    left = list(options.target)
    running: dict[int, str] = {}
    try:
        while left or running:
            while left and len(running) < options.jobs:
                name = left.pop(0)
                folder_of(options.folder, name).mkdir(parents=True, exist_ok=True)
                (folder_of(options.folder, name) / "outcome.json").unlink(missing_ok=True)
                running[_begin(name, targets[name], guided, options)] = name
            process, status = os.wait()
            print(json.dumps([running.pop(process), os.waitstatus_to_exitcode(status)]), flush=True)
    finally:
        for process in running:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
