"""``inspector capture``."""

from __future__ import annotations

import sys

import click

from inspector.api import save
from inspector.cli.common import open_target, print_json, say
from inspector.cli.options import Target, json_option, output_option, target_options
from inspector.reports.jsonform import target_json
from inspector.storage import Output

__all__ = ["command"]


def _facts(notes: tuple[str, ...]) -> dict[str, str]:
    facts = {}
    for note in notes:
        key, separator, value = note.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"'{note}' is not KEY=VALUE", param_hint="--note")
        if not _is_text(note):
            raise click.BadParameter(f"{note!a} is not text in UTF-8", param_hint="--note")
        facts[key] = value
    return facts


def _is_text(argument: str) -> bool:
    """Say whether an argument is valid UTF-8; Linux passes any bytes to a program."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


@click.command()
@target_options
@json_option
@output_option
@click.option(
    "--note",
    "notes",
    multiple=True,
    metavar="KEY=VALUE",
    help="a fact of origin to keep in it",
)
def command(
    target: Target,
    as_json: bool,
    output: Output,
    notes: tuple[str, ...],
) -> None:
    """Save what an inspection needs as a small core file.

    It holds KVM's structures, the rmap arrays and lists, the page tables of
    L0 and the shadow ones, and L1's own tables for its guests; no other
    memory of a guest.  No other file is needed to open it.
    """
    facts = _facts(notes)
    aside = output.is_standard
    if aside and sys.stdout.isatty():
        raise click.UsageError("a capture is not text for a terminal; redirect standard output")
    acquired = open_target(target)
    size = save(acquired, output, facts)
    if as_json:
        document = {"schema": "inspector.capture/1", "target": target_json(acquired)}
        print_json(document | {"file": output.name, "bytes": size}, err=aside)
        return
    held = int(acquired.memory.sizes.sum())
    say(
        f"{output}: {size / 1024:.0f} KiB, {held / 1024:.0f} KiB of memory "
        f"in {acquired.memory.starts.size} pieces, {len(acquired.snapshot.vms)} VMs",
        err=aside,
    )
    if acquired.origin.stopped_seconds is not None:
        say(f"machine stopped for {acquired.origin.stopped_seconds * 1000:.1f} ms", err=aside)
