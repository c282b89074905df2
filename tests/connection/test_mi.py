"""Control of GDB over MI, with a script in GDB's place."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import TargetLost, TargetNotSupported
from inspector.live.mi import GdbError, GdbProcess, _parsed

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


@pytest.mark.parametrize(
    ("line", "payload"),
    [
        (b"1^done", None),
        (b"2^running", None),
        (
            b'3^error,msg="a \\"b\\" {[",code="undefined-command"',
            {"msg": 'a "b" {[', "code": "undefined-command"},
        ),
        (
            b'4^connected,frame={level="0",addr="0x1",func="??",args=[],arch="powerpc:common64"}',
            {
                "frame": {
                    "level": "0",
                    "addr": "0x1",
                    "func": "??",
                    "args": [],
                    "arch": "powerpc:common64",
                }
            },
        ),
        (
            b'5^done,asm_insns=[{address="0x1",opcodes="60 00",inst="nop"},{address="0x5"}]',
            {
                "asm_insns": [
                    {"address": "0x1", "opcodes": "60 00", "inst": "nop"},
                    {"address": "0x5"},
                ]
            },
        ),
        (
            b'6^done,bkpt={number="1",type="hw breakpoint",thread-groups=["i1"],times="0"}',
            {
                "bkpt": {
                    "number": "1",
                    "type": "hw breakpoint",
                    "thread-groups": ["i1"],
                    "times": "0",
                }
            },
        ),
        (
            b'7^done,stack=[frame={level="0"},frame={level="1"}]',
            {"stack": [{"level": "0"}, {"level": "1"}]},
        ),
    ],
)
def test_records(line: bytes, payload: object) -> None:
    record = _parsed(line)
    assert record is not None
    assert record["payload"] == payload


@pytest.mark.parametrize(
    "line",
    [
        b'1^d"one,asm_insns=[{address="0x0",inst="noadded,id="i1"',
        b'1^done,a=["b"',
        b'1^done,a={"b"}',
        b'1^done,a="b',
        b"1^done,a=b",
        b'1^done,a="b"c="d"',
        b"1^done,a=\1",
        b"1^done,a=" + b"[" * 100 + b"]" * 100,
        b"1^done,a=" + b"[" * 5000,
        b"done",
    ],
)
def test_what_is_no_record(line: bytes) -> None:
    assert _parsed(line) is None


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
    with pytest.raises(TargetLost, match="GDB ended while '-die'"):
        gdb.command("-die")
    with pytest.raises(TargetLost, match="GDB ended"):
        gdb.command("-anything")


def test_a_gdb_that_does_not_answer_is_noticed(gdb: GdbProcess) -> None:
    with pytest.raises(TargetLost, match="did not answer within"):
        gdb.command("-silent", timeout=0.05)


def test_without_gdb_the_user_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetNotSupported, match="gdb-multiarch"):
        GdbProcess()
