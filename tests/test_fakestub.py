"""The fake stub behaves like QEMU's, and none of its bad behaviours harms its client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fixtures.lab.fakestub import trial
from fixtures.lab.fakestub.base import FakeMachine, HonestStub
from fixtures.lab.fakestub.behaviours import BEHAVIOURS, FAMILIES
from fixtures.lab.fakestub.ram import ram_of
from fixtures.lab.fakestub.trial import Outcome, try_it
from fixtures.lab.stub import Stub
from inspector.capture import read_capture
from inspector.dumps.elfcore import open_core
from inspector.live.direct import hva_of
from inspector.live.mtree import large_blocks, parse_mtree
from tests.fixtures import DIRECTORY

CAPTURE = DIRECTORY / "powernv9-singles.core.zst"
"""The smallest capture."""

SAMPLE = (
    *("honest", "honest-direct", "files-second-dollar-running", "files-plain-monitor"),
    *("flood-of-notifications-running", "memory-packet-without-end", "description-billion-laughs"),
    *("threads-thousands", "status-escapes", "reset-at-registers"),
)
"""A few of each family that neither wait nor take long; `lab fakestub` tries them all."""


@pytest.fixture(scope="module")
def machine() -> FakeMachine:
    return FakeMachine(ram_of(CAPTURE))


@pytest.fixture
def port(machine: FakeMachine) -> Iterator[int]:
    """Serve one client, and give the port."""

    def serve() -> None:
        end, _ = listener.accept()
        with end:
            HonestStub(end, machine).serve()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()


def _printed(stub: Stub, command: str) -> str:
    answer = stub.packet(f"qRcmd,{command.encode().hex()}")
    printed = ""
    while answer.startswith("O") and answer != "OK":
        printed += bytes.fromhex(answer[1:]).decode()
        answer = stub.packet("")
    return printed


@pytest.mark.slow
def test_it_has_the_memory_of_the_capture(machine: FakeMachine, port: int) -> None:
    core = open_core(CAPTURE)
    capture = read_capture(core)
    assert capture is not None
    with Stub(port) as stub:
        for start, size in list(zip(capture.memory.starts, capture.memory.sizes, strict=True))[::9]:
            expected = capture.memory.read(int(start), int(size))
            assert stub.read_physical(int(start), int(size)) == expected
    assert machine.runs
    assert not machine.physical


def test_it_says_where_memory_is(machine: FakeMachine, port: int) -> None:
    stub = HonestStub(socket.socket(), machine)
    found = parse_mtree(stub.printed("info mtree -f")).ram
    assert (found.starts.tolist(), found.sizes.tolist()) == ([0], [machine.ram.size])
    (block,) = large_blocks(stub.printed("info ramblock"))
    assert block.size == machine.ram.size
    assert block.hva == hva_of(stub.printed("gpa2hva 0x0")) == machine.ram.hva
    stub.end.close()
    with Stub(port) as client:
        assert client.packet("qqemu.PhyMemMode") == "0"


def test_a_machine_that_runs_takes_any_byte_for_a_request_to_stop(
    machine: FakeMachine, port: int
) -> None:
    with Stub(port) as stub:
        assert stub.packet("qC") == "QCp01.01"
        # this client skips the stop, and the '$' of its question is lost
        end = stub._socket
        end.sendall(b"$vCont;c#a8\3")
        answered = b""
        while b"#" not in answered:
            answered += end.recv(100)
        assert answered.endswith(b"$T02thread:p01.01;#03")
        assert not machine.runs


def test_every_behaviour_is_described() -> None:
    assert len(BEHAVIOURS) >= 80
    for one in BEHAVIOURS.values():
        assert one.family in FAMILIES
        assert set(one.codes) <= {0, 1, 3}
        assert one.what
        assert "\n" not in one.what
    assert {one.family for one in BEHAVIOURS.values()} == set(FAMILIES)
    assert all(one.codes == (0,) for one in BEHAVIOURS.values() if one.family == "honest")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"code": 4}, "exit code 4"),
        ({"code": None}, "exit code None"),
        ({"seconds": 61.0}, "61 s, of 60"),
        ({"peaks": {"relay": 513 << 20}}, "relay had 513 MiB"),
        ({"error": "inspector: no\x1b[31m\n"}, "'\\x1b' in the error output"),
        ({"out": "\x9b2J"}, "'\\x9b' in the output"),
        ({"out": "\u202e"}, "'\\u202e' in the output"),
        ({"out": "\udc80"}, "the output is not UTF-8"),
        ({"error": "a\nb\n"}, "2 lines of message"),
        ({"error": ""}, "0 lines of message"),
        ({"error": "Traceback (most recent call last):\n"}, "a traceback in the error output"),
        ({}, ""),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], fault: str) -> None:
    behaviour = BEHAVIOURS["packet-without-end"]
    outcome = replace(
        Outcome(behaviour.name, "check", code=3, seconds=1.0, error="inspector: it never ends\n"),
        **changes,  # type: ignore[arg-type]
    )
    trial._judge(outcome, behaviour)
    assert outcome.faults == ([fault] if fault else [])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trial.layout_of(CAPTURE, tmp_path_factory.mktemp("layout"))


@pytest.mark.slow
@pytest.mark.needs_gdb
@pytest.mark.parametrize("name", SAMPLE)
def test_a_stub_cannot_use_its_client(name: str, layout: Path) -> None:
    """Slow: the test starts GDB and the tool, and some behaviours take seconds."""
    outcome = try_it(BEHAVIOURS[name], "check", layout, capture=CAPTURE)
    assert not outcome.faults, f"{outcome.faults}: {outcome.error}"


@pytest.mark.slow
@pytest.mark.needs_gdb
@pytest.mark.parametrize("command", ["doctor", "resume", "watch"])
def test_other_commands_leave_the_machine_as_they_found_it(command: str, layout: Path) -> None:
    outcome = try_it(BEHAVIOURS["honest"], command, layout, capture=CAPTURE)
    assert not outcome.faults, f"{outcome.faults}: {outcome.error}"
    assert outcome.state == {"runs": True, "physical": False, "points": 0, "clients": 1}
