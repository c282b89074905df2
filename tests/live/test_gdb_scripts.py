"""The GDB commands in real GDBs: they answer as the inspector does, and change nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.lab import gdbs
from tests.live.tools import Lab, document, inspector

SCRIPT = Path(__file__).parents[2] / "gdb_scripts" / "kvmhv.py"
MSR_HV = 1 << 60
CONTEXTS = {"host": True, "guest": False}
HELD = """
import gdb, json, sys

def state():
    frame, thread = gdb.selected_frame(), gdb.selected_thread()
    mode = gdb.selected_inferior().connection.send_packet("qqemu.PhyMemMode").decode()
    kept = [gdb.parameter("remotetimeout"), gdb.parameter("pagination")]
    return [mode, thread.ptid, thread.is_stopped(), frame.level(), frame.pc(), *kept]

def said(command):
    try:
        return gdb.execute(command, to_string=True)
    except gdb.error as error:
        return f"error: {error}"
    except KeyboardInterrupt:
        return "interrupted"
"""
"""Code that the scripts of these tests run inside GDB to compare the state before and after."""


@pytest.fixture(params=["host", *gdbs.SUITES])
def gdb(request: pytest.FixtureRequest) -> str:
    """The host's GDB, and newer versions if they have been fetched."""
    if request.param == "host":
        return "gdb-multiarch"
    program = gdbs.program(request.param, fetch=False)
    if program is None:
        pytest.skip(f"this GDB is not here; run fixtures/lab/lab gdb {request.param}")
    return str(program)


def _run(gdb: str, *commands: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a GDB that has sourced the script."""
    given = [f"-ex={command}" for command in (f"source {SCRIPT}", *commands)]
    # The script finds the inspector of the installation that runs these tests.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [gdb, "-nx", "-batch", *given],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "PATH": path, **environment},
    )


def _python(gdb: str, lab: Lab, body: str, tmp_path: Path) -> Any:
    """Attach a GDB, run a script inside it and return what it left in ``result``."""
    script, result = tmp_path / "held.py", tmp_path / "result.json"
    left = f"json.dump(result, open({str(result)!r}, 'w'))"
    script.write_text(f"{HELD}\n{body}\n{left}\n")
    port = lab.machine.state.gdb_port
    done = _run(gdb, f"target remote 127.0.0.1:{port}", f"source {script}", "detach")
    assert "Traceback" not in done.stdout + done.stderr
    assert result.exists(), done.stdout + done.stderr
    lab.assert_untouched()
    return json.loads(result.read_text())


def _fake(tmp_path: Path, body: str) -> str:
    """Return the GDB command that runs a script of a test in place of the inspector."""
    program = tmp_path / "inspector"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, socket, sys, time\n"
        "end = socket.socket(fileno=int(sys.argv[2].partition(':')[2])).makefile('rwb')\n"
        "def ask(text):\n"
        "    end.write(text + b'\\n')\n"
        "    end.flush()\n"
        "    kind, length = end.readline().split()\n"
        "    return kind + b' ' + end.read(int(length))\n"
        f"{body}\n"
    )
    program.chmod(0o755)
    return f"set kvmhv inspector {program}"


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_answers_are_those_of_the_command_line(
    boot: Callable[..., Lab], gdb: str, context: str, tmp_path: Path
) -> None:
    lab = boot("mixed", idle="l2")
    expected = lab.machine.expectation
    (_, gfn), words = next((at, words) for at, words in expected.slots.items() if len(words) > 3)
    leaf = expected.leaves[0]
    options = [f"--kernel={lab.machine.state.vmlinux}", f"--modules={lab.machine.state.modules}"]
    capture = tmp_path / "held.core.zst"
    asked = {
        "vms": ("vms",),
        "nested": ("vms", "--nested"),
        "rmap": ("rmap",),
        f"rmap {gfn:#x}": ("rmap", "--gfn", f"{gfn:#x}"),
        "rmap $gfn": ("rmap", "--gfn", f"{gfn:#x}"),
        f"lookup --gfn {gfn:#x}": ("lookup", "--gfn", f"{gfn:#x}"),
        f"lookup --l2 {leaf.lpid}:{leaf.l2:#x}": ("lookup", "--l2", f"{leaf.lpid}:{leaf.l2:#x}"),
        "lookup --word $word": ("lookup", "--word", f"{words[0]:#x}"),
        "check": ("check",),
    }
    held = _python(
        gdb,
        lab,
        f"""
for _ in range(300):
    if bool(int(gdb.parse_and_eval("$msr")) & {MSR_HV}) is {CONTEXTS[context]}:
        break
    gdb.execute("detach", to_string=True)
    gdb.execute("target remote 127.0.0.1:{lab.machine.state.gdb_port}", to_string=True)
else:
    raise RuntimeError("never stopped in this context")
gdb.execute("set $gfn = {gfn}")
gdb.execute("set $word = {words[0]}")
said("set kvmhv options {" ".join(options)}")
before, said_of = state(), {{}}
said_of["capture"] = said("kvmhv capture {capture}")
for question in {list(asked)!r}:
    said_of[question] = said(f"kvmhv {{question}} --json")
result = {{"before": before, "after": state(), "said": said_of,
          "text": said("kvmhv check"), "exit": int(gdb.parse_and_eval("$kvmhv_exit"))}}
""",
        tmp_path,
    )
    assert held["before"] == held["after"]
    assert held["before"][0] == "0"
    for question, arguments in asked.items():
        command, *rest = arguments
        answer = json.loads(held["said"][question])
        offline = document(inspector(command, str(capture), *rest, "--json"))
        assert answer.pop("target")["read_path"].startswith("GDB ")
        offline.pop("target")
        assert answer == offline
    slots = {
        int(slot["gfn"], 16): [int(word, 16) for word in slot["words"]]
        for slot in json.loads(held["said"]["rmap"])["slots"]
    }
    assert slots == {gfn: words for (_, gfn), words in expected.slots.items()}
    (slot,) = json.loads(held["said"][f"rmap {gfn:#x}"])["slots"]
    assert [int(word, 16) for word in slot["words"]] == words
    assert held["text"].endswith("verdict: consistent\n")
    assert held["exit"] == 0


ENDINGS = {
    "interrupted": (
        "ask(b'read 1000 10'); os.kill(os.getppid(), signal.SIGINT); time.sleep(60)",
        "interrupted",
    ),
    "killed": (
        "ask(b'map'); os.kill(os.getpid(), signal.SIGKILL)",
        "error: inspector vms was ended by signal 9",
    ),
    "failing": ("sys.stderr.write('not so\\n'); sys.exit(3)", "error: not so"),
    "no numbers": ("print(ask(b'read x y').decode())", "error invalid literal"),
    "half a range": ("print(ask(b'read 10').decode())", "error "),
    "no request": ("print(ask(b'write 10 10').decode())", "error the request 'write' is not known"),
    "torn request": ("end.write(b'read 10'); end.flush()", ""),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_everything_is_as_before_however_it_ends(
    boot: Callable[..., Lab], gdb: str, how: str, tmp_path: Path
) -> None:
    lab = boot("mixed", idle="l2")
    body, text = ENDINGS[how]
    held = _python(
        gdb,
        lab,
        f"""
said({_fake(tmp_path, body)!r})
before = state()
result = {{"before": before, "said": said("kvmhv vms"), "after": state(), "sum": said("print 2+2")}}
""",
        tmp_path,
    )
    assert held["before"] == held["after"]
    assert held["said"].startswith(text)
    assert held["sum"].endswith("= 4\n")


def test_physical_mode_that_was_found_is_left(
    boot: Callable[..., Lab], gdb: str, tmp_path: Path
) -> None:
    lab = boot("mixed", idle="l2")
    held = _python(
        gdb,
        lab,
        f"""
said({_fake(tmp_path, "print(ask(b'read 1000 10')[:3].decode())")!r})
connection = gdb.selected_inferior().connection
connection.send_packet("Qqemu.PhyMemMode:1")
result = [state()[0], said("kvmhv vms"), state()[0]]
connection.send_packet("Qqemu.PhyMemMode:0")
""",
        tmp_path,
    )
    assert held == ["1", "ok \n", "1"]


def test_violations_are_no_failure_of_the_command(
    boot: Callable[..., Lab], gdb: str, tmp_path: Path
) -> None:
    lab = boot("mixed", idle="l2")
    target = f"target remote 127.0.0.1:{lab.machine.state.gdb_port}"
    fake = _fake(tmp_path, "ask(b'read 1000 10'); print('a finding'); sys.exit(1)")
    done = _run(gdb, target, fake, "kvmhv check", "output $kvmhv_exit")
    assert "a finding\n1" in done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_gdb_that_is_ended_leaves_virtual_mode(
    boot: Callable[..., Lab], gdb: str, name: str, tmp_path: Path
) -> None:
    lab = boot("mixed", idle="l2")
    told = tmp_path / "told"
    body = (
        f"ask(b'read 1000 10'); open({str(told)!r}, 'w').close()\n"
        f"os.kill(os.getppid(), signal.{name}); time.sleep(3)"
    )
    target = f"target remote 127.0.0.1:{lab.machine.state.gdb_port}"
    _run(gdb, target, _fake(tmp_path, body), "kvmhv vms")
    assert told.exists()
    lab.assert_untouched()


def test_a_running_machine_is_not_read(boot: Callable[..., Lab], gdb: str) -> None:
    lab = boot("mixed", idle="l2")
    target = f"target remote 127.0.0.1:{lab.machine.state.gdb_port}"
    done = _run(gdb, target, "continue &", "kvmhv vms")
    assert "Cannot execute this command while the target is running" in done.stderr
    lab.assert_untouched()


def test_without_a_machine(gdb: str, tmp_path: Path) -> None:
    done = _run(gdb, "kvmhv vms")
    assert "no machine is attached; use 'target remote HOST:PORT' first" in done.stderr
    done = _run(gdb, "set kvmhv inspector /does/not/exist", "kvmhv vms", "show kvmhv")
    assert "The inspector command: /does/not/exist" in done.stdout


WORDS = (0, 3, 0x0010000001013001, 0xFFF0000000010000, 0xC000000002433610)


def test_decoding_needs_no_machine(gdb: str) -> None:
    texts = [f"{word:#x}" for word in WORDS]
    for of_hash in ([], ["--hash"]):
        done = _run(gdb, f"kvmhv decode {' '.join([*texts, *of_hash])}")
        assert done.stdout == inspector("decode", *texts, *of_hash).stdout
        assert done.stdout
    done = _run(gdb, "set $word = 1", "kvmhv decode '$word + 2'")
    assert done.stdout == inspector("decode", "3").stdout
    assert "Usage: kvmhv decode" in _run(gdb, "kvmhv decode").stderr


def test_the_function_for_conditions(gdb: str) -> None:
    done = _run(
        gdb,
        "output $nested_rmap(0xfff0000000010000)",
        'output $nested_rmap(0xfff0000000010000, "lpid") == 4095',
        'output/x $nested_rmap(0x0010000001013001, "gpa")',
        'output $nested_rmap(0x0010000001013001, "single")',
        "output $nested_rmap(0)",
        'output $nested_rmap(0, "host")',
    )
    assert done.stdout == '"4095:0x10000"10x10130001"empty"'
    assert 'has no part "host", it has lpid, gpa, single' in done.stderr


def test_help_and_completion(gdb: str) -> None:
    commands = ("capture", "check", "decode", "lookup", "nested", "rmap", "vms")
    assert _run(gdb, "complete kvmhv ").stdout.split("\n")[:-1] == [f"kvmhv {c}" for c in commands]
    listed = _run(gdb, "help kvmhv").stdout
    for command in commands:
        assert f"kvmhv {command} -- " in listed
        assert f"Usage: kvmhv {command}" in _run(gdb, f"help kvmhv {command}").stdout
    done = _run(gdb, "complete kvmhv rmap 0x20 --j", "complete kvmhv lookup --g")
    assert done.stdout.split("\n")[:-1] == [
        *("kvmhv rmap 0x20 --json", "kvmhv rmap 0x20 --jsonl"),
        *("kvmhv lookup --gfn", "kvmhv lookup --gpa"),
    ]
    folder = f"{SCRIPT.parent.parent}/inspect"
    assert f"kvmhv capture {folder}or" in _run(gdb, f"complete kvmhv capture {folder}").stdout
    assert "LPID:ADDRESS" in _run(gdb, "help function nested_rmap").stdout


def test_the_options_offered_are_those_of_the_command_line(gdb: str) -> None:
    for command in ("rmap", "lookup", "capture"):
        known = inspector(command, "--help").stdout
        offered = _run(gdb, f"complete kvmhv {command} -").stdout.split("\n")[:-1]
        assert offered
        for line in offered:
            assert f"{line.split()[-1]} " in known


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """An object file with two nodes of a list."""
    source, out = tmp_path / "node.c", tmp_path / "node.o"
    source.write_text(
        "struct llist_node { struct llist_node *next; };\n"
        "struct rmap_nested { struct llist_node list; unsigned long rmap; };\n"
        "struct rmap_nested last = { { (void *)0x0010000001013001 }, 0xfff0000000010000 };\n"
        "struct rmap_nested first = { { (void *)0xc000000002433610 }, 0x0020000000020000 };\n"
    )
    compiler = shutil.which("powerpc64le-linux-gnu-gcc")
    assert compiler is not None
    subprocess.run([compiler, "-g", "-c", source, "-o", out], check=True)
    return out


def test_a_node_is_printed_decoded(gdb: str, node: Path) -> None:
    done = _run(gdb, f"file {node}", "output last", "echo \\n", "output first")
    assert done.stdout == (
        "L2 4095:0x10000, then the last entry, L2 1:0x1013000\n"
        "L2 2:0x20000, then node 0xc000000002433610"
    )


def test_the_inspector_says_where_the_script_is() -> None:
    script = Path(inspector("gdb-script").stdout.strip())
    # the script in the checkout (SCRIPT) loads this one
    assert script == SCRIPT.parents[1] / "inspector" / "gdb_scripts" / SCRIPT.name


CANNOT_START = {
    "no such interpreter": ("#!/no/such/python\n", "cannot be started: No such file"),
    "a launcher without its package": ("#!/bin/sh\necho 'No module' >&2; exit 1\n", "No module"),
    "says nothing": ("#!/bin/sh\nexit 0\n", "it said nothing"),
    "fails itself": ("#!/bin/sh\necho 'it failed' >&2; exit 4\n", "it failed"),
    "is killed": ("#!/bin/sh\nkill -9 $$\n", "was ended by signal 9"),
}


def test_a_tool_that_cannot_start_is_no_verdict(
    boot: Callable[..., Lab], gdb: str, tmp_path: Path
) -> None:
    lab = boot("singles")
    programs = {}
    for number, (kind, (text, _)) in enumerate(CANNOT_START.items()):
        program = tmp_path / f"inspector{number}"
        program.write_text(text)
        program.chmod(0o755)
        programs[kind] = str(program)
    found = _python(
        gdb,
        lab,
        f"""
result = {{}}
for kind, program in {programs!r}.items():
    gdb.set_convenience_variable("kvmhv_exit", 0)
    gdb.execute(f"set kvmhv inspector {{program}}")
    result[kind] = [said("kvmhv check"), int(gdb.parse_and_eval("$kvmhv_exit"))]
""",
        tmp_path,
    )
    for kind, (_, message) in CANNOT_START.items():
        text, code = found[kind]
        assert code == 4, (kind, text)
        assert text.startswith("error: "), kind
        assert message in text, kind
        assert "\n" not in text, kind
