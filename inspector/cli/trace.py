"""``inspector trace``."""

from __future__ import annotations

import click

from inspector.cli.common import print_json, progress, say
from inspector.cli.options import Target, json_option, target_options
from inspector.following.trace import INTERRUPTED, trace
from inspector.reports.followed import trace_json, trace_report

__all__ = ["command"]


@click.command()
@target_options
@json_option
@click.option(
    "--calls",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="end after so many calls have returned",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="end after so many seconds",
)
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool, calls: int, seconds: float) -> None:
    """Follow a live machine with the model, call by call.

    Reads every slot before and after each insertion and removal, and stops
    at the first call that differs from the model. The machine is stopped at
    each call, and runs again at the end.

    Ctrl-C ends it, and the calls followed until then are shown.

    Exit code 0: no divergence; 1: diverged; 3: the target is not usable; 130:
    no divergence until Ctrl-C.
    """
    with progress() as stage:
        found = trace(target.name, target.options, calls, seconds, stage)
    if as_json:
        print_json(trace_json(target.name, found))
    else:
        for line in trace_report(found):
            say(line)
    if found.divergence is not None:
        ctx.exit(1)
    ctx.exit(130 if found.ended == INTERRUPTED else 0)
