"""``inspector layout``."""

from __future__ import annotations

import click

from inspector.cli.common import describe_target, print_json, say
from inspector.cli.options import Target, json_option, output_option, target_options
from inspector.image.cache import encoded
from inspector.storage import Output

__all__ = ["command"]


@click.command()
@target_options
@json_option
@output_option
def command(target: Target, as_json: bool, output: Output) -> None:
    """Save a layout profile: all that the tool needs to know of the target's kernel.

    With it (--layout FILE) any target that runs the same build opens with
    no search and no other file.
    """
    known = describe_target(target)
    profile = known.profile
    aside = output.is_standard
    output.write(encoded(profile))
    if as_json:
        print_json(
            {
                "schema": "inspector.layout/1",
                "file": output.name,
                "release": profile.release,
                "build_id": profile.build_id,
                "layout": known.source,
                "rejected": list(known.rejected),
            },
            err=aside,
        )
        return
    say(
        f"{output}: Linux {profile.release}, build ID {profile.build_id or 'none'}, "
        f"from {known.source}",
        err=aside,
    )
