"""``inspector gdb-script``."""

from __future__ import annotations

from pathlib import Path

import click

import inspector

__all__ = ["command"]

SCRIPT = Path(inspector.__file__).parent / "gdb_scripts" / "kvmhv.py"


@click.command()
def command() -> None:
    """Say where the script with the GDB commands is, for GDB's 'source'."""
    click.echo(SCRIPT)
