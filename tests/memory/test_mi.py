"""Speaking MI, with a script in GDB's place."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.errors import MemoryNotReadable, TargetNotSupported
from inspector.memory import mi
from inspector.memory.mi import GdbError, GdbProcess, _contents

SCRIPT = r"""#!{python}
import sys, time

def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()

say('=thread-group-added,id="i1"')
say("(gdb) ")
held = []
for line in sys.stdin:
    digits = len(line) - len(line.lstrip("0123456789"))
    token, command = line[:digits], line[digits:].rstrip()
    if command.startswith("-data-read-memory-bytes"):
        address, length = (int(word, 0) for word in command.split()[1:])
        if address == 0xBAD:
            answer = token + '^error,msg="Cannot access memory at address 0xbad"'
        else:
            data = bytes((address + i) % 256 for i in range(length if address != 0x5407 else 1))
            answer = (
                token + '^done,memory=[{{begin="0x0",offset="0x0",end="0x0",contents="'
                + data.hex() + '"}}]'
            )
        say("*running,thread-id=\"all\"")
        say(answer)
    elif command == "-gdb-exit":
        say(token + "^exit")
        break
    elif "fail" in command:
        say(token + '^error,msg="no such thing"')
    elif "die" in command:
        break
    elif "torn" in command:
        for text in ('he rest of a line"', '*stopped,reas', '~"never ended', '=x,{{'):
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


def test_more_ranges_than_may_be_under_way_are_read_in_order(gdb: GdbProcess) -> None:
    ranges = [(0x1000 + i, 1 + i % 5) for i in range(3 * mi.WINDOW)]
    assert gdb.read_ranges(ranges) == [
        bytes((address + i) % 256 for i in range(length)) for address, length in ranges
    ]
    assert gdb.read_ranges([]) == []


def test_what_gdb_cannot_read_is_not_readable(gdb: GdbProcess) -> None:
    with pytest.raises(MemoryNotReadable, match="Cannot access memory"):
        gdb.read_ranges([(0x1000, 8), (0xBAD, 8)])


def test_a_short_answer_is_not_readable(gdb: GdbProcess) -> None:
    with pytest.raises(MemoryNotReadable, match="returned 1 bytes"):
        gdb.read_ranges([(0x5407, 8)])


def test_after_a_failed_read_the_next_answers_are_still_matched(gdb: GdbProcess) -> None:
    with pytest.raises(MemoryNotReadable):
        gdb.read_ranges([(0xBAD, 8), *((0x2000 + i, 1) for i in range(20))])
    assert gdb.read_ranges([(0x10, 4)]) == [b"\x10\x11\x12\x13"]
    assert gdb.command("-anything").payload == {"value": "4"}


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


def test_contents_are_cut_out_of_the_line() -> None:
    line = b'5^done,memory=[{begin="0x0",offset="0x0",end="0x4",contents="00ff1020"}]'
    assert _contents(line, 0, 4) == b"\x00\xff\x10\x20"
    with pytest.raises(MemoryNotReadable, match="GDB gave no contents"):
        _contents(b"5^done", 0, 4)
