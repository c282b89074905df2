"""Many executions of one target, in a process of its own: ``python -m tests.fuzz.campaign``.

With the library atheris (optional) inputs that reach new code are kept and
changed further; without it, only the inputs to begin with are changed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.trial import Trial, memory_limit

if TYPE_CHECKING:
    from tests.fuzz.target import Target

__all__ = ["Outcome", "plain"]

OURS = 0.7
"""The share of changes that are made by the target's own mutator."""
KEPT, POOL = 0.1, 256
"""Without guidance, such a share of the inputs is changed further, and so many are at once."""
WRITTEN_EVERY = 2000
CLOCK_EVERY = 50


@dataclass
class Outcome:
    """What came of a campaign against one target.

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
    """Yield the inputs to begin with, then changed ones without end, some changed many times."""
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
    """Executions until there are enough of them, or the time is over."""

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
            # the fuzzer's own loop has no other end
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


def _guided(options: argparse.Namespace) -> None:
    import atheris

    with atheris.instrument_imports(include=["inspector"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[options.target]
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
        "max_len": 2 * max(map(len, seeds)) + (1 << 13),
        "len_control": 0,
        "seed": options.seed,
        "rss_limit_mb": 0,
        "timeout": 300,
        "detect_leaks": 0,
    }
    arguments = [sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in limits.items())]
    atheris.Setup(arguments, _Campaign(target, options, True), custom_mutator=mutate)
    with memory_limit(1 << 30):
        atheris.Fuzz()


def _unguided(options: argparse.Namespace) -> None:
    from tests.fuzz.targets import TARGETS

    target = TARGETS[options.target]
    campaign = _Campaign(target, options, False)
    with memory_limit():
        for data in plain(target, options.seed):
            campaign(data)


def main() -> None:
    """Run a campaign against one target and write its outcome beside its corpus."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--executions", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        import atheris  # noqa: F401
    except ModuleNotFoundError:
        _unguided(options)
    else:
        _guided(options)


if __name__ == "__main__":
    main()
