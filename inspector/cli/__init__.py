"""The command line.  It holds no logic: it opens, asks and prints."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import click

from inspector import __version__
from inspector.errors import Hint, InspectorError
from inspector.live import ahead

__all__ = ["main"]

PROGRAM = "inspector"
EXIT_NOT_USABLE = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
EXIT_SIGNAL = 128
REPEAT_AFTER = 0.01
NOT_PRINTED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""Errors of a write to standard output: it has no room, or cannot be written to."""
COMPLETION = "_INSPECTOR_COMPLETE"
"""Environment variable through which a shell asks for the completions of a word."""

COMMANDS = {
    "capture": "Save what an inspection needs as a small core file.",
    "check": "Check the reverse maps against the model.",
    "decode": "Decode rmap words.",
    "diff": "Show the differences between two targets, or from an expectation.",
    "doctor": "Say what was found in a target and what prevents its inspection.",
    "gdb-script": "Say where the script with the GDB commands is.",
    "history": "Show which code wrote an rmap word, on a machine that replays a recording.",
    "layout": "Save what the tool knows of the target's kernel.",
    "lookup": "Show how a page, an rmap word or a kernel address is mapped, both ways.",
    "replay": "Follow recorded calls with the model.",
    "report": "Write the result of a check as one self-contained HTML page.",
    "resume": "Let a live machine that was left stopped run again.",
    "rmap": "List the rmap slots with their entries.",
    "schema": "Print the JSON Schema of a document that --json prints.",
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


MANUAL = Path(__file__).parent.parent / "manual"


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    # The \b keeps click from breaking the path into two lines.
    epilog=f"\b\nThe manual: {MANUAL / 'start.md'}",
)
@click.version_option(__version__)
def cli() -> None:
    """Show and prove what KVM-HV on POWER believes about nested guests.

    TARGET is gdb:HOST:PORT (the GDB stub of a QEMU machine that runs the
    host kernel), a file (a capture of this tool, an ELF core, a
    kdump-compressed dump) or raw:FILE@0xADDRESS, an image of memory that
    begins at a physical address.

    Exit codes: 0 consistent, 1 violations found, 2 usage, 3 target not
    usable or nothing can be concluded, 4 the tool itself failed, which is no
    verdict (INSPECTOR_TRACEBACK=1 shows where).
    """


class _Terminated(BaseException):
    """A signal that ends the process, as an exception, so that the machine first runs again."""

    number = signal.SIGTERM


class _HungUp(_Terminated):
    """The same for a terminal that was closed."""

    number = signal.SIGHUP


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise _HungUp if number == signal.SIGHUP else _Terminated


def _catch_signals() -> None:
    """Turn signals into exceptions, except signals that the parent process has set to ignored."""
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
        _on_ignored(unraisable.exc_value)
        return
    threading.Timer(REPEAT_AFTER, os.kill, (os.getpid(), number)).start()


def _on_ignored(error: BaseException | None) -> None:
    """Report in one line an error that nothing depends on, as in the thread that shows progress."""
    _say(f"ignored: {error!r}")


def _say(message: str) -> None:
    """Print a message on stderr, with control characters in it escaped."""
    from inspector.cli.common import say

    say(f"inspector: {message}", err=True)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a hint in the form of every other message."""
    if issubclass(category, Hint):
        _say(str(message))
    else:
        _say(warnings.formatwarning(message, category, filename, lineno, line).strip())


class _ForeignExitError(RuntimeError):
    """Code other than the command line asked for the process to exit."""


def _invoke(arguments: Sequence[str]) -> None:
    """Run a command without click's ``main``, whose exit codes are not the documented ones."""
    try:
        if COMPLETION in os.environ:
            cli.main(list(arguments), PROGRAM, COMPLETION)
        with cli.make_context(PROGRAM, list(arguments)) as context:
            cli.invoke(context)
    except SystemExit as error:
        if COMPLETION in os.environ:
            raise
        raise _ForeignExitError(
            f"a plug-in or a library has asked for exit code {error.code}"
        ) from error


def _outcome(arguments: Sequence[str]) -> int:
    """Run a command and return the documented code."""
    try:
        for argument in arguments:
            ahead.begin(argument)
        _invoke(arguments)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    except InspectorError as error:
        _say(str(error))
        return EXIT_NOT_USABLE
    except (KeyboardInterrupt, click.Abort):
        with contextlib.suppress(OSError):
            click.echo("inspector: interrupted; a live target was left as it was found", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return EXIT_PIPE
    except OSError as error:
        # Errors of files that are opened by name are handled where they are opened.
        if error.errno not in NOT_PRINTED:
            raise
        _drop_output()
        _say(
            f"cannot print the answer: {error.strerror}; "
            "check that standard output can be written to and has room"
        )
        return EXIT_NOT_USABLE
    finally:
        ahead.end()
    return 0


def main() -> None:
    """Run the command line and exit with its documented code."""
    _catch_signals()
    sys.unraisablehook = _on_unraisable
    threading.excepthook = lambda failed: _on_ignored(failed.exc_value)
    # Print each hint once and as one line, whatever -W or PYTHONWARNINGS say.
    warnings.simplefilter("default", Hint)
    warnings.showwarning = _show_warning
    try:
        code = _outcome(sys.argv[1:])
    except _Terminated as terminated:
        code = EXIT_SIGNAL + terminated.number
    sys.exit(code)


def _drop_output() -> None:
    """Discard the output that is not yet written, so that its flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
