"""Speaking MI, with a script in GDB's place."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import TargetNotSupported
from inspector.memory.mi import GdbError, GdbProcess

SCRIPT = r"""#!{python}
import sys, time

def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

say('=thread-group-added,id="i1"')
say("(gdb) ")
for line in sys.stdin:
    digits = len(line) - len(line.lstrip("0123456789"))
    token, command = line[:digits], line[digits:].rstrip()
    if "fail" in command:
        say(token + '^error,msg="no such thing"')
    elif "die" in command:
        break
    elif "torn" in command:
        open_list = token + '^done,value=["a]"'
        for text in ('he rest of a line"', open_list, '*stopped,reas', '~"never ended', '=x,{{'):
            say(text)
        say(token + "^done")
    elif "silent" in command:
        pass
    elif "stop" in command:
        say(token + "^done")
        say('*stopped,reason="signal-received"')
    elif "run" in command:
        say('*running,thread-id="all"')
        say(token + "^running")
    else:
        say('~"first line\\n"')
        say('@"from the \\"target\\"\\n"')
        say("99999^done")
        say(token + '^done,value="4"')
    say("(gdb) ")
"""


@pytest.fixture
def gdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GdbProcess]:
    program = tmp_path / "gdb-multiarch"
    program.write_text(SCRIPT.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    process = GdbProcess()
    yield process
    process.close()


def test_a_command_gets_its_own_answer(gdb: GdbProcess) -> None:
    result = gdb.command("-data-evaluate-expression 4")
    assert result.payload == {"value": "4"}
    assert result.text == 'first line\nfrom the "target"\n'
    assert gdb.console("show something") == result.text


def test_torn_lines_are_passed_over(gdb: GdbProcess) -> None:
    assert gdb.command("-torn").payload == {}


def test_an_error_is_gdbs_own(gdb: GdbProcess) -> None:
    with pytest.raises(GdbError, match="no such thing"):
        gdb.command("-fail")


def test_it_is_known_whether_the_target_runs(gdb: GdbProcess) -> None:
    gdb.command("-run")
    assert gdb.running
    gdb.command("-stop")
    gdb.wait_stopped()
    assert not gdb.running


def test_a_gdb_that_ends_is_noticed(gdb: GdbProcess) -> None:
    with pytest.raises(TargetNotSupported, match="GDB ended while '-die'"):
        gdb.command("-die")
    with pytest.raises(TargetNotSupported, match="GDB ended"):
        gdb.command("-anything")


def test_a_gdb_that_does_not_answer_is_noticed(gdb: GdbProcess) -> None:
    with pytest.raises(TargetNotSupported, match="did not answer within"):
        gdb.command("-silent", timeout=0.05)


def test_without_gdb_the_user_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetNotSupported, match="gdb-multiarch"):
        GdbProcess()
