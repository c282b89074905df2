"""``inspector resume``."""

from __future__ import annotations

import click

from inspector.cli.common import print_json, say
from inspector.cli.options import TargetName, json_option
from inspector.live.ahead import address_of
from inspector.live.machine import resumed

__all__ = ["command"]


@click.command()
@click.argument("target", type=TargetName())
@json_option
def command(target: str, as_json: bool) -> None:
    """Let a live machine that was left stopped run again, in virtual mode and without breakpoints.

    It does so whichever program has stopped the machine.
    """
    found = resumed(*address_of(target))
    if as_json:
        print_json({"schema": "inspector.resume/1", "target": target, "found": found})
    else:
        say(f"{target} runs again; its state before that, as QEMU reported it: {found}")
