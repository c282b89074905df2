"""GDB commands that show what KVM-HV on POWER believes about nested guests.

Source this file in a GDB (12 or later, built with Python) that is attached to
the GDB stub of a QEMU machine; ``help kvmhv`` lists the commands.

GDB's own Python needs no packages for them.  A command that reads the target
runs the ``inspector`` command, lends it the stopped machine's physical memory
over a socket (see inspector/live/served.py for the protocol), and prints its
output.  The machine stays stopped and nothing is written to it.  The stub
leaves physical mode before any other command can run, also after an error or
Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import gdb
import gdb.printing

if not hasattr(gdb, "RemoteTargetConnection"):
    raise gdb.GdbError(f"kvmhv.py needs GDB 12 or later, this is {gdb.VERSION}")

ROOT = next(
    folder
    for folder in Path(__file__).resolve().parents
    if (folder / "inspector" / "encoding.py").is_file()
)
"""The checkout, or the site-packages that the inspector is installed in."""

if str(ROOT) not in sys.path:
    # Last, so that other packages installed there do not hide modules of GDB's Python.
    sys.path.append(str(ROOT))

from inspector import encoding  # noqa: E402
from inspector.reports.words import words_text  # noqa: E402

NAME = "inspector"
POLL = 0.1
"""Seconds between two checks for a Ctrl-C, or another signal that was held back."""
ANSWER_TIMEOUT = 30.0
"""Seconds that the inspector may take to fetch an answer."""
REMOTE_TIMEOUT = 30
"""Seconds. With GDB's own 2 s, a late answer of a busy QEMU would be taken for the next one."""
VIOLATIONS = 1
"""The highest exit code that is a statement about the machine."""
NO_VERDICT = 4
"""The exit code of an inspector that failed itself; see the manual's page about reports."""
HELD_BACK = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals that would make GDB leave a command while the stub is in physical mode."""
U64 = (1 << 64) - 1


class _Setting(gdb.Parameter):
    """A setting that is a text; the text is empty if it is not set."""

    shown = ""

    def __init__(self, name: str, kind: int) -> None:
        super().__init__(f"kvmhv {name}", gdb.COMMAND_DATA, kind)
        self.value: str | None = ""

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, text: str) -> str:
        return f"{self.shown}: {text or 'not set'}"


class _InspectorSetting(_Setting):
    """The inspector command that the kvmhv commands run.

    If it is not set, they run the one installed with this script, or the first one on PATH."""

    set_doc = "Set the inspector command that the kvmhv commands run."
    show_doc = "Show the inspector command that the kvmhv commands run."
    shown = "The inspector command"


class _OptionsSetting(_Setting):
    """Options for every inspector command that reads the machine.

    For example --debug-file FILE, for a kernel without BTF."""

    set_doc = "Set options for every inspector command that reads the machine."
    show_doc = "Show options for every inspector command that reads the machine."
    shown = "Options for the inspector"


SETTINGS = {
    "inspector": (_InspectorSetting, gdb.PARAM_OPTIONAL_FILENAME),
    "options": (_OptionsSetting, gdb.PARAM_STRING_NOESCAPE),
}


class _Prefix(gdb.Command):
    """Commands for KVM-HV on POWER: what L0 believes about nested guests.

    They need a stopped machine: a QEMU that runs the host kernel (powernv, or
    pseries with nested HV), to which GDB is attached with 'target remote
    HOST:PORT'.  It may have stopped in the host or in a guest."""

    def __init__(self) -> None:
        super().__init__("kvmhv", gdb.COMMAND_DATA, gdb.COMPLETE_COMMAND, True)


class _SettingsPrefix(gdb.Command):
    """Settings of the kvmhv commands."""

    def __init__(self, verb: str) -> None:
        super().__init__(f"{verb} kvmhv", gdb.COMMAND_DATA, gdb.COMPLETE_COMMAND, True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Show all settings, if none is named."""
        for name in SETTINGS:
            gdb.execute(f"show kvmhv {name}")


class _Command(gdb.Command):
    """A command whose arguments are words; a word that is a GDB expression is evaluated."""

    name = ""
    options: tuple[str, ...] = ("--json",)

    def __init__(self) -> None:
        super().__init__(f"kvmhv {self.name}", gdb.COMMAND_DATA)

    def complete(self, text: str, word: str | None) -> object:
        """Complete an option; ``word`` is None if GDB only asks for the kind of completion."""
        typed = "" if not text or text[-1].isspace() else text.split()[-1]
        if not typed.startswith("-"):
            return self.others(typed)
        known = len(typed) - len(typed if word is None else word)
        return [option[known:] for option in self.options if option.startswith(typed)]

    def others(self, typed: str) -> object:
        """Return the completions of a word that is not an option."""
        return gdb.COMPLETE_EXPRESSION if typed.startswith(("$", "(")) else gdb.COMPLETE_NONE


class _OfMachine(_Command):
    """A command of the inspector, run on the stopped machine."""

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        given = [_evaluated(word) for word in gdb.string_to_argv(argument)]
        _run_inspector(self.name, given)


class _Vms(_OfMachine):
    """List the VMs with their memslots and nested guests.

    Usage: kvmhv vms [--json]"""

    name = "vms"


class _NestedGuests(_OfMachine):
    """List the nested guests of every VM.

    Usage: kvmhv nested [--json]"""

    name = "nested"

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        _run_inspector("vms", ["--nested", *gdb.string_to_argv(argument)])


class _Rmap(_OfMachine):
    """Show rmap slots, every entry decoded and marked live or stale.

    Usage: kvmhv rmap [GFN...] [--all] [--json] [--jsonl]
    GFN is a page number of an L1 guest, or a GDB expression that begins with $
    or a parenthesis.  Without one, every slot that is not empty is shown."""

    name = "rmap"
    options = ("--all", "--json", "--jsonl")

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        given = [_evaluated(word) for word in gdb.string_to_argv(argument)]
        _run_inspector(
            self.name,
            [part for word in given for part in ((word,) if word[0] == "-" else ("--gfn", word))],
        )


class _Lookup(_OfMachine):
    """Show how a page is mapped, from L2 to the host and back.

    Usage: kvmhv lookup HOW [--vm LPID] [--all] [--json]
    HOW is one of
      --gfn GFN, --gpa GPA   a page of L1, by its number or an address in it
      --l2 LPID:GPA          a page of L2
      --hpa HPA              a page of the host, by a physical address in it
      --word WORD            an rmap word
      --address ADDRESS      a kernel address of a node, a slot, a memslot, ...
    Numbers may be GDB expressions that begin with $ or a parenthesis."""

    name = "lookup"
    options = (
        *("--gfn", "--gpa", "--l2", "--hpa", "--word", "--address"),
        *("--vm", "--all", "--json"),
    )


class _Capture(_OfMachine):
    """Save the memory that an inspection reads as a small core file, for the inspector.

    Usage: kvmhv capture FILE [--json]"""

    name = "capture"
    options = ("--json", "--note")

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        file, *rest = gdb.string_to_argv(argument) or [""]
        if not file or file.startswith("-"):
            raise gdb.GdbError("Usage: kvmhv capture FILE [--json]")
        _run_inspector(self.name, ["-o", os.path.expanduser(file), *rest])

    def others(self, typed: str) -> object:
        """Complete the file."""
        return gdb.COMPLETE_FILENAME


class _Check(_OfMachine):
    """Check every VM's reverse maps and shadow tables against the inspector's model.

    Usage: kvmhv check [--json]
    $kvmhv_exit is 0 afterwards if they are consistent, 1 if there are violations;
    3 and 4 are no verdict."""

    name = "check"


class _Decode(_Command):
    """Decode rmap words; no machine is needed.

    Usage: kvmhv decode WORD... [--hash]
    A WORD is a GDB expression, in quotes if it contains blanks.  --hash says
    that the words are of a guest with the hash MMU."""

    name = "decode"
    options = ("--hash",)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Run it."""
        given = gdb.string_to_argv(argument)
        words = [_value(word) for word in given if word != "--hash"]
        if not words:
            raise gdb.GdbError("Usage: kvmhv decode WORD... [--hash]")
        for line in words_text(words, of_hash="--hash" in given):
            gdb.write(f"{line}\n")

    def others(self, typed: str) -> object:
        """Complete an expression."""
        return gdb.COMPLETE_EXPRESSION


class _NestedRmapFunction(gdb.Function):
    """Decode the word of an entry of a nested reverse map.

    Usage: $nested_rmap (WORD [, PART])
    It is "LPID:ADDRESS", for example "1:0x1014000", or "empty" for 0.  With a
    PART it is a number: "lpid" the L1 LPID, "gpa" the L2 guest real address,
    "single" whether the single-entry bit is set.  For example:
    break *ADDRESS if $nested_rmap($r4, "lpid") == 5"""

    def __init__(self) -> None:
        super().__init__("nested_rmap")

    def invoke(self, word: gdb.Value, part: gdb.Value | None = None) -> str | int:
        """Evaluate it."""
        value = int(word) & U64
        if part is None:
            return _entry(value)
        lpid, gpa = encoding.decode(value)
        parts = {"lpid": lpid, "gpa": gpa, "single": encoding.is_single(value)}
        name = part.string()
        if name not in parts:
            raise gdb.GdbError(f'$nested_rmap has no part "{name}", it has {", ".join(parts)}')
        return parts[name]


class _RmapNestedPrinter:
    """Prints a ``struct rmap_nested``, if its type is loaded."""

    def __init__(self, node: gdb.Value) -> None:
        self._node = node

    def to_string(self) -> str:
        """Return the entry of the node and what follows it."""
        after = int(self._node["list"]["next"]) & U64
        form = encoding.form_of(after)
        follows = {
            encoding.SlotForm.EMPTY: "then nothing",
            encoding.SlotForm.SINGLE: f"then the last entry, L2 {_entry(after)}",
            encoding.SlotForm.LIST: f"then node {after:#x}",
        }
        return f"L2 {_entry(int(self._node['rmap']) & U64)}, {follows[form]}"


def _entry(word: int) -> str:
    entry = encoding.decode(word)
    return f"{entry.lpid}:{entry.gpa:#x}" if word else "empty"


def _value(expression: str) -> int:
    return int(gdb.parse_and_eval(expression)) & U64


def _evaluated(word: str) -> str:
    return f"{_value(word):#x}" if word.startswith(("$", "(")) else word


def _program() -> str:
    """Return the inspector command to run."""
    given: str | None = gdb.parameter("kvmhv inspector")
    if given:
        found = shutil.which(os.path.expanduser(given))
        if found is None:
            raise gdb.GdbError(
                f"there is no program '{given}'; give another one with 'set kvmhv inspector FILE'"
            )
        return found
    own = [ROOT / ".venv" / "bin" / NAME]
    if ROOT.name in ("site-packages", "dist-packages"):
        own.append(ROOT.parents[2] / "bin" / NAME)
    found = next((str(path) for path in own if os.access(path, os.X_OK)), shutil.which(NAME))
    if found is None:
        raise gdb.GdbError(
            "the command 'inspector' is needed to read the machine, and is not on PATH; "
            "install it (see its README), or say where it is with 'set kvmhv inspector FILE'"
        )
    return found


def _machine() -> gdb.RemoteTargetConnection:
    """Return the connection to the machine; GDB itself refuses to read a running machine."""
    connection = gdb.selected_inferior().connection
    if not isinstance(connection, gdb.RemoteTargetConnection):
        raise gdb.GdbError("no machine is attached; use 'target remote HOST:PORT' first")
    return connection


def _run_inspector(command: str, arguments: list[str]) -> None:
    """Run a command of the inspector on the machine, and print its output when it has ended."""
    # The exit code of an earlier command must not be taken for the one of this command.
    gdb.set_convenience_variable("kvmhv_exit", NO_VERDICT)
    connection, program = _machine(), _program()
    options = gdb.string_to_argv(gdb.parameter("kvmhv options") or "")
    ours, theirs = socket.socketpair()
    target = f"served:{theirs.fileno()}"
    # GDB may have been started with a PYTHONHOME of its own.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONHOME"}
    with ours, theirs, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        with (
            _lent(connection),
            _started(
                [program, command, target, *options, *arguments],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdout=out,
                stderr=error,
            ) as child,
        ):
            theirs.close()
            try:
                asked = _serve(ours, connection)
            except BaseException:
                child.kill()
                raise
        said, failure = (_text(file) for file in (out, error))
    code = child.returncode
    if not asked and (code == VIOLATIONS or (code == 0 and not said)):
        # A Python that cannot start exits with 1 too, which must not look like violations.
        last = (failure.strip().splitlines() or ["it said nothing"])[-1]
        raise gdb.GdbError(
            f"'{program}' ended with exit code {code} and did not read the machine, so this is no "
            f"verdict ({last}); check that it runs in a shell, or 'set kvmhv inspector FILE'"
        )
    if asked and code >= 0:
        gdb.set_convenience_variable("kvmhv_exit", code)
    gdb.write(said)
    if code < 0:
        raise gdb.GdbError(f"{NAME} {command} was ended by signal {-code}; this is no verdict")
    if code > VIOLATIONS:
        raise gdb.GdbError(failure.strip() or f"{NAME} {command}: exit code {code}")
    gdb.write(failure, gdb.STDERR)


def _started(
    command: list[str],
    *,
    pass_fds: list[int],
    env: dict[str, str],
    stdout: IO[bytes],
    stderr: IO[bytes],
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise gdb.GdbError(
            f"'{command[0]}' cannot be started: {error.strerror}; install the inspector, or say "
            "where it is with 'set kvmhv inspector FILE'"
        ) from error


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _lent(connection: gdb.RemoteTargetConnection) -> Iterator[None]:
    """Keep the stub in physical mode for a block; signals wait until its mode is restored."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    timeout = gdb.parameter("remotetimeout")
    try:
        gdb.execute(f"set remotetimeout {REMOTE_TIMEOUT}", to_string=True)
        mode = connection.send_packet("qqemu.PhyMemMode")
        if mode not in (b"0", b"1"):
            raise gdb.GdbError(
                "the stub has no physical mode, so it is not QEMU's (or older than 4.1); "
                "use QEMU 4.1 or later"
            )
        try:
            connection.send_packet("Qqemu.PhyMemMode:1")
            yield
        finally:
            connection.send_packet(b"Qqemu.PhyMemMode:" + mode)
    finally:
        gdb.execute(f"set remotetimeout {timeout or 'unlimited'}", to_string=True)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(end: socket.socket, connection: gdb.RemoteTargetConnection) -> bool:
    """Answer requests until the other end closes; return whether any was answered."""
    end.settimeout(ANSWER_TIMEOUT)
    asked = b""
    answered = False
    while True:
        if HELD_BACK & signal.sigpending():
            raise KeyboardInterrupt
        if not select.select([end], [], [], POLL)[0]:
            continue
        piece = end.recv(1 << 16)
        if not piece:
            return answered
        asked += piece
        if asked.endswith(b"\n"):
            try:
                kind, answer = b"ok", _answer(asked.decode().split(), connection)
            except (gdb.error, ValueError) as error:
                kind, answer = b"error", str(error).encode()
            asked = b""
            answered = answered or kind == b"ok"
            end.sendall(b"%s %d\n" % (kind, len(answer)) + answer, socket.MSG_NOSIGNAL)


def _answer(request: list[str], connection: gdb.RemoteTargetConnection) -> bytes:
    """Answer one request; inspector/live/served.py describes the requests."""
    kind, *numbers = request
    if kind == "about":
        return f"GDB {gdb.VERSION}, attached to {connection.details}".encode()
    if kind == "map":
        return bytes(gdb.execute("monitor info mtree -f", to_string=True), "utf-8")
    if kind == "read":
        # The numbers are pairs of an address and a length in bytes, both hexadecimal.
        memory = gdb.selected_inferior()
        places = [int(number, 16) for number in numbers]
        pairs = zip(places[::2], places[1::2], strict=True)
        return b"".join(bytes(memory.read_memory(*pair)) for pair in pairs)
    raise gdb.error(
        f"the request '{kind}' is not known; {NAME} and kvmhv.py are of different versions"
    )


def _install() -> None:
    _Prefix()
    for verb in ("set", "show"):
        _SettingsPrefix(verb)
    for name, (setting, kind) in SETTINGS.items():
        setting(name, kind)
    for command in (_Vms, _NestedGuests, _Rmap, _Lookup, _Capture, _Check, _Decode):
        command()
    _NestedRmapFunction()
    printers = gdb.printing.RegexpCollectionPrettyPrinter("kvmhv")
    printers.add_printer("rmap_nested", "^rmap_nested$", _RmapNestedPrinter)
    gdb.printing.register_pretty_printer(None, printers, replace=True)


_install()
