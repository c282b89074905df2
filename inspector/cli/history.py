"""``inspector history``."""

from __future__ import annotations

import click

from inspector.cli.common import print_json, progress, say
from inspector.cli.options import Target, WordParam, json_option, target_options
from inspector.following.history import Wanted, history
from inspector.following.sweep import Stop
from inspector.reports.history import history_json, history_report

__all__ = ["command"]

EXIT_CODES = {None: 0, Stop.TIME: 3, Stop.INTERRUPTED: 130}


@click.command()
@target_options
@json_option
@click.option("--gfn", type=WordParam(), help="the slot of this L1 guest page")
@click.option(
    "--entry",
    type=click.IntRange(min=0),
    help="with --gfn: this entry of the slot instead (0 is the newest), and the link to it",
)
@click.option("--word", "address", type=WordParam(), help="the word at this kernel address")
@click.option("--vm", type=int, metavar="LPID", help="the VM, where several have the gfn")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="how many writers to show, the last ones",
)
@click.option(
    "--since",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="COUNT",
    help="look only after this instruction of the recording",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="how long to look; the writes found by then are shown",
)
@click.pass_context
def command(
    ctx: click.Context,
    target: Target,
    as_json: bool,
    gfn: int | None,
    entry: int | None,
    address: int | None,
    vm: int | None,
    limit: int,
    since: int,
    seconds: float,
) -> None:
    """Show which code wrote an rmap word, on a machine that replays a recording.

    Every store to the word is shown, the newest first: its function and
    callers, the instruction, the word before and after it, and how many
    instructions the machine had executed.  The replay is left where it was
    found.  `fixtures/lab/lab record` makes such a machine.

    Exit code 0: the whole recording was looked through; 3: only a part of
    it, or the target is not usable.
    """
    if (gfn is None) == (address is None):
        raise click.UsageError("give one of --gfn and --word")
    if gfn is None and (entry is not None or vm is not None):
        raise click.UsageError("--entry and --vm go with --gfn")
    if address is not None and address % 8:
        raise click.UsageError("--word is the address of a 64-bit word, a multiple of 8")
    wanted = Wanted(gfn, entry, address, vm)
    with progress() as stage:
        found = history(target.name, target.options, wanted, limit, since, seconds, stage)
    if as_json:
        print_json(history_json(found))
    else:
        for line in history_report(found):
            say(line)
    ctx.exit(EXIT_CODES[found.stopped_by])
