"""``inspector watch``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable

import click

from inspector.cli.common import progress, say
from inspector.cli.options import Target, target_options
from inspector.reports.watch import HEADING, Picture, sample_json, sample_line
from inspector.watch import Pace, Sample, watch

__all__ = ["command"]

Show = Callable[[Sample], None]


@click.command()
@target_options
@click.option(
    "--rate",
    type=click.FloatRange(min=0.01, max=100),
    default=1.0,
    show_default=True,
    metavar="HZ",
    help="samples per second",
)
@click.option("--count", type=click.IntRange(min=1), help="end after so many samples")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="end after so many seconds"
)
@click.option("--jsonl", is_flag=True, help="print one JSON object per sample")
def command(
    target: Target,
    rate: float,
    count: int | None,
    seconds: float | None,
    jsonl: bool,
) -> None:
    """Watch a live machine: entries, live and stale, longest lists, faults per second.

    In a terminal the latest sample is shown in place; elsewhere there is a
    line per VM and sample, or with --jsonl a JSON object per sample.  The
    machine is stopped for each sample and runs in between; the time it is
    stopped is shown.  Ctrl-C ends it, and the machine continues to run.

    Exit code 0: ended by Ctrl-C, --count or --seconds; 3: the target is not
    usable, or has ended.
    """
    pace = Pace(rate, count, seconds)
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        stages = stack.enter_context(contextlib.ExitStack())
        stage = stages.enter_context(progress())
        samples = stack.enter_context(
            contextlib.closing(watch(target.name, target.options, pace, stage))
        )
        show: Show | None = None
        for sample in samples:
            stages.close()
            show = show or _shown(stack, jsonl=jsonl)
            show(sample)


def _shown(stack: contextlib.ExitStack, *, jsonl: bool) -> Show:
    """Return the function that shows a sample."""
    if jsonl:
        return _print_json
    if not sys.stdout.isatty():
        click.echo(HEADING)
        return _print_lines
    from rich.live import Live

    picture = Picture()
    live = stack.enter_context(Live(auto_refresh=False))
    return lambda sample: live.update(picture.of(sample), refresh=True)


def _print_json(sample: Sample) -> None:
    click.echo(json.dumps(sample_json(sample)))


def _print_lines(sample: Sample) -> None:
    for line in sample_line(sample):
        say(line)
    for note in sample.notes:
        say(f"inspector: {note}", err=True)
