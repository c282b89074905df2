"""``inspector doctor``."""

from __future__ import annotations

import click

from inspector.cli.common import print_json, progress, say
from inspector.cli.options import Target, json_option, target_options
from inspector.diagnosis import diagnose
from inspector.reports.diagnosis import diagnosis_json, diagnosis_report

__all__ = ["command"]

NOT_USABLE = 3


@click.command()
@target_options
@json_option
@click.pass_context
def command(ctx: click.Context, target: Target, as_json: bool) -> None:
    """Say step by step what was found in a target and what prevents its inspection.

    Exit code 0: it can be inspected; 3: it cannot.
    """
    with progress() as stage:
        diagnosis = diagnose(target.name, target.options, stage)
    if as_json:
        print_json(diagnosis_json(diagnosis))
    else:
        for line in diagnosis_report(diagnosis):
            say(line)
    ctx.exit(0 if diagnosis.usable else NOT_USABLE)
