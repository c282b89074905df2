"""``inspector lookup``."""

from __future__ import annotations

import click

from inspector.cli.common import open_target, print_json, progress, say
from inspector.cli.options import Target, WordParam, json_option, target_options
from inspector.progress import Doing
from inspector.questions.lookup import LIMIT, Kind, Question, lookup
from inspector.reports.lookup import lookup_json, lookup_report

__all__ = ["command"]


class _L2Address(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """LPID:GPA, as reports write it; the address hexadecimal where it begins with 0x."""

    name = "lpid:gpa"

    def convert(
        self,
        value: str | tuple[int, int],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        lpid, separator, address = value.partition(":")
        if not separator:
            self.fail(f"'{value}' is not of the form LPID:GPA, as 1:0x1014000", param, ctx)
        word = WordParam()
        return word.convert(lpid, param, ctx), word.convert(address, param, ctx)


@click.command()
@target_options
@json_option
@click.option("--gfn", type=WordParam(), metavar="GFN", help="an L1 page, by its number")
@click.option("--gpa", type=WordParam(), metavar="GPA", help="an L1 page, by an address in it")
@click.option("--l2", type=_L2Address(), metavar="LPID:GPA", help="an L2 page")
@click.option(
    "--hpa", type=WordParam(), metavar="HPA", help="a host page, by a physical address in it"
)
@click.option("--word", type=WordParam(), metavar="WORD", help="an rmap word")
@click.option(
    "--address",
    type=WordParam(),
    metavar="ADDRESS",
    help="a kernel address: of a list node, a slot, a memslot or another structure",
)
@click.option("--vm", type=int, metavar="LPID", help="look into this VM only (default: all)")
@click.option("--all", "everything", is_flag=True, help="show long lists whole")
@click.pass_context
def command(
    ctx: click.Context,
    target: Target,
    as_json: bool,
    gfn: int | None,
    gpa: int | None,
    l2: tuple[int, int] | None,
    hpa: int | None,
    word: int | None,
    address: int | None,
    vm: int | None,
    everything: bool,
) -> None:
    """Show how a page is mapped, from L2 to the host and back.

    Give one of --gfn, --gpa, --l2, --hpa, --word and --address.  The answer
    has the L2 pages on the way, each with its entry in L1's, L0's and the
    shadow table; the L1 pages with their rmap slots, every entry marked
    live, stale or suspicious; and the host pages with all that maps them.

    Exit code 0: answered; 1: a finding of 'inspector check' names something
    in the answer; 3: the target is not usable.
    """
    lpid, l2_address = l2 or (0, None)
    given = {
        Kind.GFN: gfn,
        Kind.GPA: gpa,
        Kind.L2: l2_address,
        Kind.HPA: hpa,
        Kind.WORD: word,
        Kind.ADDRESS: address,
    }
    questions = [
        Question(kind, value, lpid, vm) for kind, value in given.items() if value is not None
    ]
    if len(questions) != 1:
        raise click.UsageError("give one of --gfn, --gpa, --l2, --hpa, --word and --address")
    acquired = open_target(target)
    with progress() as stage:
        stage(Doing.LOOKING_UP, "")
        answer = lookup(acquired.snapshot, questions[0], None if everything else LIMIT)
    if as_json:
        print_json(lookup_json(acquired, answer))
    else:
        for line in lookup_report(acquired, answer, everything=everything):
            say(line)
    ctx.exit(1 if answer.findings else 0)
