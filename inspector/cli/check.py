"""``inspector check``."""

from __future__ import annotations

import functools

import click

from inspector.checks.base import all_invariants
from inspector.checks.verdict import Verdict, judge
from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import JSON_HELP, Target, target_options
from inspector.reports.invariants import invariants_json, invariants_page, invariants_text
from inspector.reports.jsonform import check_json
from inspector.reports.text import check_report

__all__ = ["command"]

EXIT_CODES = {Verdict.CONSISTENT: 0, Verdict.VIOLATIONS: 1, Verdict.INCONCLUSIVE: 3}


def _show_list(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Print the list of invariants, once all options about it are parsed.

    The list needs no target, so it is printed before click asks for TARGET.
    """
    given = {**ctx.params, param.name: value}
    if ctx.resilient_parsing or not given.keys() >= {"listed", "as_json", "markdown"}:
        return value
    if given["markdown"] and not given["listed"]:
        raise click.UsageError("--markdown is a form of --list")
    if given["listed"]:
        invariants = all_invariants()
        if given["as_json"]:
            print_json(invariants_json(invariants))
        else:
            form = invariants_page if given["markdown"] else invariants_text
            for line in form(invariants):
                say(line)
        ctx.exit()
    return value


_before_target = functools.partial(click.option, is_flag=True, is_eager=True, callback=_show_list)


@click.command()
@target_options
@_before_target("--list", "listed", help="list the invariants and exit")
@_before_target("--json", "as_json", help=JSON_HELP)
@_before_target("--markdown", help="with --list: the manual's page of invariants")
@click.pass_context
def command(
    ctx: click.Context,
    target: Target,
    listed: bool,
    as_json: bool,
    markdown: bool,
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
            say(line)
    ctx.exit(EXIT_CODES[judgement.verdict])
