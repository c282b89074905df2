"""``inspector rmap``."""

from __future__ import annotations

import json

import click

from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import Target, WordParam, json_option, target_options
from inspector.reports.jsonform import rmap_json, rmap_lines
from inspector.reports.text import rmap_report

__all__ = ["command"]


@click.command()
@target_options
@json_option
@click.option("--jsonl", is_flag=True, help="print one JSON object per non-empty slot")
@click.option(
    "--gfn", "gfns", multiple=True, type=WordParam(), help="show the slot of this L1 page only"
)
@click.option("--all", "everything", is_flag=True, help="show long lists whole")
def command(
    target: Target,
    as_json: bool,
    jsonl: bool,
    gfns: tuple[int, ...],
    everything: bool,
) -> None:
    """List the non-empty rmap slots, every entry decoded and marked live or stale."""
    if as_json and jsonl:
        raise click.UsageError("--json and --jsonl exclude each other")
    acquired = open_target(target)
    if as_json:
        print_json(rmap_json(acquired, gfns))
    elif jsonl:
        for row in rmap_lines(acquired.snapshot, gfns):
            click.echo(json.dumps(row))
        for gap in acquired.snapshot.gaps:
            say(f"inspector: not read: {gap.text}", err=True)
    else:
        for line in rmap_report(acquired.snapshot, everything=everything, gfns=gfns):
            say(line)
