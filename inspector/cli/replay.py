"""``inspector replay``."""

from __future__ import annotations

from pathlib import Path

import click

from inspector.cli.common import open_target, print_json, progress, say
from inspector.cli.options import Target, json_option, target_options
from inspector.following.calls import read_calls
from inspector.following.replay import replay
from inspector.reports.followed import replay_json, replay_report

__all__ = ["command"]


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, recording: Path, target: Target, as_json: bool) -> None:
    """Feed recorded calls to the model and compare its final state with TARGET.

    RECORDING is a file that 'lab up --record' wrote; TARGET is the machine
    that was recorded, or a capture taken at the end.  Replay stops at the
    first call after which kernel and model differ, and shows both.

    Exit code 0: the same throughout; 1: they differ; 3: not usable.
    """
    acquired = open_target(target)
    # read after the target: while a machine runs, its recording grows
    calls = read_calls(recording)
    with progress() as stage:
        outcome = replay(calls, acquired.snapshot, stage)
    if as_json:
        print_json(replay_json(acquired, calls, outcome))
    else:
        for line in replay_report(acquired, calls, outcome):
            say(line)
    ctx.exit(0 if outcome.same else 1)
