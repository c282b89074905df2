"""``inspector vms``."""

from __future__ import annotations

import click

from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import Target, json_option, target_options
from inspector.reports.jsonform import vms_json
from inspector.reports.text import vms_report

__all__ = ["command"]


@click.command()
@target_options
@json_option
@click.option("--nested", is_flag=True, help="leave the memslots out of the text")
def command(target: Target, as_json: bool, nested: bool) -> None:
    """List the VMs with their memslots and nested guests."""
    acquired = open_target(target)
    if as_json:
        print_json(vms_json(acquired))
        return
    for line in vms_report(acquired, memslots=not nested):
        say(line)
