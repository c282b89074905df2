"""Every error of the command line names the next step; shells complete words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from inspector.cli import COMMANDS, cli
from tests.cli.test_commands import CORE, GARBAGE, PACKED, TARGET, run

NEXT = {
    "nofile": "a live machine is given as gdb:HOST:PORT",
    "127.0.0.1:1234": "given as gdb:127.0.0.1:1234",
    "tcp:127.0.0.1:1234": "given as gdb:127.0.0.1:1234",
    "/": "give the name of a dump",
    "raw:nofile": "give the name of a dump",
    "raw:x@zz": "given as raw:FILE@0xADDRESS",
    "raw:/dev/null@0": "give a dump",
    "split:a": "give all as split:FILE,FILE",
    "gdb:x": "for example gdb:127.0.0.1:1234",
    "gdb:127.0.0.1:70000": "for example gdb:127.0.0.1:1234",
}
NEXT_OF_GDB = {
    "gdb:127.0.0.1:1": "Start QEMU with '-gdb tcp:127.0.0.1:PORT'",
    "gdb:no.such.host.invalid:1": "give gdb:HOST:PORT with a name or an address",
}


@pytest.mark.slow
@pytest.mark.needs_gdb
@pytest.mark.parametrize("target", NEXT_OF_GDB)
def test_a_machine_that_is_not_there(target: str) -> None:
    message = str(run("check", target).exception)
    assert NEXT_OF_GDB[target] in message
    assert "Traceback" not in message


@pytest.mark.parametrize("target", NEXT)
def test_a_target_that_is_none(target: str) -> None:
    message = str(run("check", target).exception)
    assert NEXT[target] in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "action"),
    [
        (b"", "give a dump"),
        (b"hello\n", "give a capture of this tool"),
        (PACKED[:9000], "copy it again"),
        (PACKED[:5000] + b"\0" + PACKED[5001:], "copy it again"),
        (CORE[: len(CORE) // 2], "copy it again"),
        (CORE[:64], "copy it again"),
        (CORE[:18] + b"\x3e\0" + CORE[20:], "give a dump of the KVM-HV host"),
        (CORE[:4] + b"\1" + CORE[5:], "give a dump of the KVM-HV host"),
        (GARBAGE["a program"] or b"", "give a dump of the KVM-HV host"),
        (GARBAGE["kdump"] or b"", "copy it again"),
    ],
)
def test_a_file_that_is_no_target(content: bytes, action: str, tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_bytes(content)
    assert action in str(run("check", str(path)).exception)


@pytest.mark.skipif(os.geteuid() == 0, reason="need a user who is not root")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_bytes(CORE)
    path.chmod(0)
    assert "run as a user who may read it" in str(run("check", str(path)).exception)


def test_a_file_that_cannot_be_written() -> None:
    message = str(run("capture", TARGET, "-o", "/no/such/folder/x").exception)
    assert "give a file in a folder that may be written to" in message


@pytest.mark.slow
@pytest.mark.parametrize(("shell", "word"), [("bash", "complete -o"), ("zsh", "compdef")])
def test_a_shell_gets_its_script(shell: str, word: str) -> None:
    """As ``eval "$(_INSPECTOR_COMPLETE=bash_source inspector)"`` in the manual."""
    code = "import sys; sys.argv[0] = 'inspector'; from inspector.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_INSPECTOR_COMPLETE": f"{shell}_source"},
    )
    assert done.returncode == 0, done.stderr
    assert word in done.stdout


def test_commands_options_and_files_are_completed() -> None:
    shell = ShellComplete(cli, {}, "inspector", "_INSPECTOR_COMPLETE")
    assert {item.value for item in shell.get_completions([], "")} == set(COMMANDS)
    assert [item.value for item in shell.get_completions([], "doc")] == ["doctor"]
    options = {item.value for item in shell.get_completions(["check"], "--")}
    assert {"--json", "--layout", "--list"} <= options
    for command in ("check", "report", "doctor"):
        (item,) = shell.get_completions([command], "fix")
        assert (item.value, item.type) == ("fix", "file")
    paths = [item.value for item in shell.get_completions(["check", "--read-path"], "d")]
    assert paths == ["direct"]


@pytest.mark.slow
def test_standard_output_that_is_full() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "inspector", "check", str(TARGET)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("inspector: cannot print the answer: ")
    assert len(done.stderr.splitlines()) == 1
