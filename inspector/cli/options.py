"""Arguments and options that several commands share; imports nothing heavy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from inspector.options import READ_PATHS, Options
from inspector.storage import Output

__all__ = [
    "JSON_HELP",
    "Target",
    "TargetName",
    "WordParam",
    "json_option",
    "output_option",
    "target_options",
]


JSON_HELP = "print JSON instead of text"

Command = Callable[..., Any]


class Target(NamedTuple):
    """The TARGET argument, and the options that say how to open it."""

    name: str
    options: Options


class WordParam(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A 64-bit number, hexadecimal where it begins with 0x."""

    name = "word"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        try:
            word = int(value, 0)
        except ValueError:
            self.fail(f"'{value}' is not a number (write 0x... for hexadecimal)", param, ctx)
        if not 0 <= word < (1 << 64):
            self.fail(f"'{value}' does not fit in 64 bits", param, ctx)
        return word


class TargetName(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """The TARGET argument, which a shell completes as the name of a file."""

    name = "target"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


def target_options(command: Command) -> Command:
    """Add the TARGET argument and the options that say how to open it, as one ``Target``."""

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        name = given.pop("target")
        options = Options(**{field.name: given.pop(field.name) for field in fields(Options)})
        if options.layout and (options.kernel or options.modules or options.debug_file):
            raise click.UsageError(
                "--layout replaces --kernel, --modules and --debug-file: give only one of the two"
            )
        return command(*args, target=Target(name, options), **given)

    decorators = (
        click.argument("target", type=TargetName()),
        click.option(
            "--kernel",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="vmlinux of the host kernel; if not given, it is found in the target's memory",
        ),
        click.option(
            "--modules",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            help="modules tree, or folder with kvm.ko and kvm-hv.ko",
        ),
        click.option(
            "--layout",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="layout profile of the host kernel, instead of its files",
        ),
        click.option(
            "--debug-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="debug file of kvm-hv.ko, for a kernel without BTF",
        ),
        click.option(
            "--read-path",
            type=click.Choice(READ_PATHS),
            default="auto",
            show_default=True,
            help="how to read a live machine: through GDB, or directly from the QEMU process",
        ),
        click.option(
            "--stopped",
            "keep_stopped",
            is_flag=True,
            help="leave the machine stopped; needed only when QEMU runs on another host",
        ),
    )
    for decorator in reversed(decorators):
        gathered = decorator(gathered)
    return gathered


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help=JSON_HELP)(command)


def output_option(command: Command) -> Command:
    """Add ``--output``, which must be given, and ``--no-clobber``, as one ``Output``.

    If it is clear that the file cannot be written, this is said before a target is opened.
    """

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        output = Output(given.pop("output"), clobber=not given.pop("no_clobber"))
        output.check()
        return command(*args, output=output, **given)

    decorators = (
        click.option(
            "-o",
            "--output",
            required=True,
            metavar="FILE",
            type=click.Path(dir_okay=False, allow_dash=True),
            help="the file to write, or - for standard output",
        ),
        click.option("--no-clobber", is_flag=True, help="do not replace an existing file"),
    )
    for decorator in reversed(decorators):
        gathered = decorator(gathered)
    return gathered
