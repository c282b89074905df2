"""The command line.  It holds no logic: it opens, asks and prints."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import TextIO

import click

from inspector import __version__
from inspector.errors import InspectorError, printable
from inspector.memory import ahead
from inspector.plugins import PluginWarning

__all__ = ["main"]

EXIT_NOT_USABLE = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_SIGNAL = 128
REPEAT_AFTER = 0.01
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing to standard output fails with where that is a file."""

COMMANDS = {
    "capture": "Save what an inspection needs as a small core file.",
    "check": "Check the reverse maps against the model.",
    "decode": "Decode rmap words.",
    "diff": "Show what is different between two targets, or from an expectation.",
    "doctor": "Say what was found of a target and what stands in the way.",
    "gdb-script": "Say where the script with the GDB commands is.",
    "history": "Show who wrote an rmap word, on a machine that replays a recording.",
    "layout": "Save what the tool knows of the target's kernel.",
    "lookup": "Show how a page, an rmap word or a kernel address is mapped, both ways.",
    "replay": "Follow recorded calls with the model.",
    "report": "Write one self-contained HTML page of a check.",
    "resume": "Let a live machine go on that was left standing.",
    "rmap": "List the rmap slots with their entries.",
    "trace": "Follow a live machine with the model, call by call.",
    "vms": "List the VMs with their memslots and nested guests.",
    "watch": "Watch a live machine: entries, live and stale, longest lists, as they change.",
}


class _Commands(click.Group):
    """Sub-commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"inspector.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run a sub-command; click itself would exit with 1, which says violations."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            raise click.exceptions.Exit(EXIT_PIPE) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


MANUAL = Path(__file__).parent.parent / "manual"


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"The manual, from start.md on: {MANUAL}",
)
@click.version_option(__version__)
def cli() -> None:
    """Show and prove what KVM-HV on POWER believes about nested guests.

    TARGET is gdb:HOST:PORT (the GDB stub of a QEMU machine that runs the
    host kernel), a file (a capture of this tool, an ELF core, a
    kdump-compressed dump) or raw:FILE@0xADDRESS, an image of memory that
    begins at a physical address.

    Exit codes: 0 consistent, 1 violations found, 2 usage, 3 target not
    usable or nothing can be concluded.
    """


class _Terminated(BaseException):
    """A signal that ends a process, as an exception so that the machine is let go on first."""

    number = signal.SIGTERM


class _HungUp(_Terminated):
    """The same for a terminal that is closed."""

    number = signal.SIGHUP


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _HungUp if number == signal.SIGHUP else _Terminated


def _catch_signals() -> None:
    """Turn signals into exceptions, except those that whoever started this has ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a signal whose exception was lost where Python cannot raise, as in a callback."""
    if issubclass(unraisable.exc_type, _Terminated):
        number = unraisable.exc_type.number
    elif issubclass(unraisable.exc_type, KeyboardInterrupt):
        number = signal.SIGINT
    else:
        sys.__unraisablehook__(unraisable)
        return
    threading.Timer(REPEAT_AFTER, os.kill, (os.getpid(), number)).start()


def _say(message: str) -> None:
    """Print what is wrong; what a target put into it is shown, and not sent to the terminal."""
    click.echo(f"inspector: {printable(message)}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print what a plug-in was passed over for as every other message."""
    if issubclass(category, PluginWarning):
        _say(str(message))
    else:
        click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True)


def main() -> None:
    """Run the command line and exit with its documented code."""
    _catch_signals()
    sys.unraisablehook = _on_unraisable
    warnings.showwarning = _show_warning
    try:
        for argument in sys.argv[1:]:
            ahead.begin(argument)
        sys.exit(cli.main(standalone_mode=False))
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InspectorError as error:
        _say(str(error))
        sys.exit(EXIT_NOT_USABLE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("inspector: interrupted; the target was let go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except _Terminated as terminated:
        sys.exit(EXIT_SIGNAL + terminated.number)
    except OSError as error:
        # Whatever is opened by its name is seen to where that is done.
        if error.errno not in FULL:
            raise
        _drop_output()
        click.echo(
            f"inspector: cannot print the answer: {error.strerror}; "
            "see that the disk which standard output goes to has room",
            err=True,
        )
        sys.exit(EXIT_NOT_USABLE)
    finally:
        ahead.end()


def _drop_output() -> None:
    """Throw away what is still to be printed, so that it does not fail once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
