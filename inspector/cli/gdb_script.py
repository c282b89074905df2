"""``inspector gdb-script``."""

from __future__ import annotations

from pathlib import Path

import click

import inspector

__all__ = ["command"]

# A link to the checkout's folder; an installed package holds the file itself.
SCRIPT = Path(inspector.__file__).parent / "gdb_scripts" / "kvmhv.py"


@click.command()
def command() -> None:
    """Say where the script with the GDB commands is, for GDB's 'source'."""
    click.echo(SCRIPT.resolve())
