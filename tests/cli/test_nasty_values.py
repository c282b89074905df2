"""Every option of every command, with values that no user would give."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from inspector.cli import COMMANDS, cli, common
from inspector.errors import InspectorError
from inspector.options import Options
from inspector.session import Acquired, acquire
from tests.fixtures import DIRECTORY

TARGET = str(DIRECTORY / "powernv9-singles.core.zst")
NASTY = (
    *("", " ", "-", "--", "-1", "0", "0x", "0x0", "1.5", "nan", "inf", "-inf", "1e999", "1e-999"),
    *("0x7fffffffffffffff", "0x8000000000000000", "0xffffffffffffffff", "0xfffffffffffff000"),
    *("0xffffffffffff", "0x10000000000000", "18446744073709551616", "0x400000000000000000"),
    *("1" * 5000, "0x" + "f" * 5000, "٣", "1_000", "\x1b[31m", "\udcff", "a" * 300),
    *("a/" * 3000, "/dev/null/x", "1:", ":1", "1:2:3", "-1:0", "0x10000:0xffffffffffffffff"),
    *(
        "4095:0xffffffffffffffff",
        "18446744073709551615:0xfffffffffffff000",
        "%s%n",
        "{}",
        "=",
        "a=",
    ),
)
DOCUMENTED = (0, 1, 2, 3, 130)
NEEDED = {
    "decode": ["1"],
    "replay": [TARGET, TARGET],
    "diff": [TARGET, TARGET],
    "gdb-script": [],
}
LIVE = ("history", "resume", "trace", "watch")
"""Commands that refuse a file before they look at their options."""


OPENED = functools.cache(acquire)


def opened_once(target: str, options: Options, progress: object) -> Acquired:
    """Open a target once: most values are refused before, and the others use the same target."""
    return OPENED(target, options)


def trials() -> Iterator[tuple[str, list[str]]]:
    """Yield the name of an option or argument with the words that precede its value.

    An option that several commands share is tried with the first of them.
    """
    shared: set[tuple[str, str]] = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        given = NEEDED.get(name, [TARGET])
        for param in command.params:
            if isinstance(param, click.Option) and not param.is_flag:
                flag = param.opts[-1]
                if (flag, param.type.name) not in shared:
                    shared.add((flag, param.type.name))
                    yield f"{name} {flag}", [name, *given, flag]
            elif isinstance(param, click.Argument):
                yield f"{name} {param.name}", [name]


TRIALS = dict(trials())


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS)
def test_a_value_that_nobody_would_give(
    trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "acquire", opened_once)
    for value in NASTY:
        given = TRIALS[trial]
        extra = ["-o", "out"] if given[0] in ("capture", "layout", "report") else []
        result = CliRunner().invoke(cli, [*given, value, *extra])
        if isinstance(result.exception, InspectorError):
            assert "\n" not in str(result.exception)
            assert len(str(result.exception)) < 20_000, (trial, value)
            continue
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            trial,
            value,
            result.exc_info,
        )
        assert result.exit_code in DOCUMENTED, (trial, value)
