"""``inspector check``."""

from __future__ import annotations

import click

from inspector.checks.base import all_invariants
from inspector.checks.verdict import Verdict, judge
from inspector.cli.common import open_target, print_json
from inspector.cli.options import Target, json_option, target_options
from inspector.reports.jsonform import check_json
from inspector.reports.text import check_report, invariant_list

__all__ = ["command"]

EXIT_CODES = {Verdict.CONSISTENT: 0, Verdict.VIOLATIONS: 1, Verdict.INCONCLUSIVE: 3}


def _show_list(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        for line in invariant_list(all_invariants()):
            click.echo(line)
        ctx.exit()


@click.command()
@target_options
@json_option
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_list,
    help="list the invariants and exit",
)
@click.pass_context
def command(
    ctx: click.Context,
    target: Target,
    as_json: bool,
) -> None:
    """Check every VM's reverse maps and shadow tables against the model.

    Exit code 0: consistent; 1: violations found; 3: the target is not usable
    or nothing can be concluded.
    """
    acquired = open_target(target)
    judgement = judge(acquired.snapshot)
    if as_json:
        print_json(check_json(acquired, judgement))
    else:
        for line in check_report(acquired, judgement):
            click.echo(line)
    ctx.exit(EXIT_CODES[judgement.verdict])
