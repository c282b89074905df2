"""``inspector diff``."""

from __future__ import annotations

from pathlib import Path

import click

from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import Target, json_option, target_options
from inspector.questions.difference import difference
from inspector.questions.expected import departures, read_expected
from inspector.reports.difference import (
    departures_json,
    departures_report,
    diff_json,
    diff_report,
)

__all__ = ["command"]


@click.command()
@target_options
@click.argument("after", required=False, metavar="[AFTER]")
@json_option
@click.option(
    "--expected",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="compare TARGET with this expectation (JSON) instead of another target",
)
@click.option("--all", "everything", is_flag=True, help="show long parts whole")
@click.pass_context
def command(
    ctx: click.Context,
    target: Target,
    after: str | None,
    as_json: bool,
    expected: Path | None,
    everything: bool,
) -> None:
    """Show the differences between TARGET and AFTER, two captures or machines.

    Entries added and gone, lists that grew, leaves of L0's, L1's and the
    shadow tables that appeared, moved, vanished or changed, entries that
    turned stale, memslots, nested guests and VMs that came and went.  The
    options that describe a kernel apply to both.

    Exit code 0: no difference; 1: different; 3: a target is not usable, or
    nothing differs but not everything could be compared.
    """
    if (after is None) == (expected is None):
        raise click.UsageError("give a second target, or --expected FILE")
    if expected is not None:
        wanted = read_expected(expected)
        acquired = open_target(target)
        departed = departures(wanted, acquired.snapshot)
        same, whole = departed.same, departed.whole
        document = departures_json(acquired, departed)
        lines = departures_report(acquired, departed, everything=everything)
    else:
        assert after is not None
        first, second = open_target(target), open_target(target._replace(name=after))
        found = difference(first.snapshot, second.snapshot)
        same, whole = found.same, found.whole
        document = diff_json(first, second, found)
        lines = diff_report(first, second, found, everything=everything)
    if as_json:
        print_json(document)
    else:
        for line in lines:
            say(line)
    ctx.exit(1 if not same else 0 if whole else 3)
