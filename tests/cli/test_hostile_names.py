"""Strings from a target are never sent to a terminal, run, or taken for a path."""

from __future__ import annotations

import ast
import io
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import inspector
from inspector.capture import Capture, write_capture
from inspector.cli import main
from inspector.errors import TargetNotSupported
from inspector.image import cache
from inspector.image.files import debug_files
from inspector.live import relay
from tests.fixtures import DIRECTORY, pieces

NAMES = (
    "6.1\x1b]0;title\x07\x1b[2J\r\n\x00\x9b31m\u202e$(touch x)`touch x`;touch x",
    "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>{{ 7*7 }}</script>",
    "../../../../x/" + "y" * 70_000,
)
SMALL = DIRECTORY / "powernv9-singles.core.zst"
COMMANDS = ("check", "rmap", "vms", "doctor", "lookup", "diff", "layout", "capture", "report")


def hostile(path: Path, name: str) -> str:
    memory, profile = pieces(SMALL)
    odd = replace(profile, release=name, build_id=name, vmcoreinfo=f"OSRELEASE={name}\n")
    write_capture(path, Capture(memory, odd, {name: name, "source": name}))
    return str(path)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run main() in this process: its exit code, and what it printed."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inspector", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setattr("signal.signal", lambda number, handler: None)
        with pytest.raises(SystemExit) as ended:
            main()
    for stream in streams:
        stream.seek(0)
    code = ended.value.code or 0
    assert isinstance(code, int)
    out, err = (stream.read() for stream in streams)
    return code, out, err


def arguments_of(command: str, target: str, folder: Path) -> list[str]:
    more = {
        "lookup": ["--gfn", "0x20"],
        "diff": [str(SMALL)],
        "layout": ["-o", str(folder / "layout")],
        "capture": ["-o", str(folder / "capture")],
        "report": ["-o", str(folder / "report")],
    }
    return [command, target, *more.get(command, [])]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES, ids=("escapes", "markup", "path"))
def test_names_are_shown_and_not_sent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = hostile(tmp_path / "target", name)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for command in COMMANDS:
        arguments = arguments_of(command, target, tmp_path)
        code, out, err = run(*arguments)
        assert code in (0, 1, 3), (command, err)
        assert "Traceback" not in err
        for line in (out + err).split("\n"):
            assert line.isprintable(), (command, line)
        assert not any(sign in out + err for sign in "\x1b\x07\x9b\u202e")
        document = run(*arguments, "--json")[1]
        json.loads(document)
        assert document.isascii()
    assert "OSRELEASE" not in out
    page = (tmp_path / "report").read_text()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "{{ 7*7 }}" in page or name != NAMES[1]
    assert not any(sign in page for sign in "\x00\x1b\x07\x9b\u202e")
    for written in ("capture", "layout", "report"):
        assert stat.S_IMODE((tmp_path / written).stat().st_mode) == 0o600
    found = {path.name for path in tmp_path.rglob("*")}
    assert found == {"target", "cwd", "layout", "capture", "report"}


def test_a_name_is_shown_with_its_escapes(tmp_path: Path) -> None:
    _, out, _ = run("check", hostile(tmp_path / "target", NAMES[0]))
    assert r"6.1\x1b]0;title\x07" in out


@pytest.mark.parametrize("release", [*NAMES, "..", "", "/etc", "6.1/../../x", "-rf"])
def test_a_release_is_no_path(release: str) -> None:
    with pytest.raises(TargetNotSupported, match="calls itself"):
        list(debug_files(release))


@pytest.mark.parametrize("build_id", [*NAMES, "..", "", "ab" * 4 + "/../x"])
def test_a_build_id_is_no_path(build_id: str, tmp_path: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path)
    _, profile = pieces(SMALL)
    cache.keep(replace(profile, build_id=build_id))
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "command",
    [
        'pmemsave 0 4096 "x"',
        "memsave 0 4096 x",
        "dump-guest-memory x",
        "screendump x",
        "savevm x",
        "logfile x",
        "replay_break 1 x",
        "replay_seek 0; savevm x",
        "info mtree -f\nsavevm x",
        "gpa2hva 0x0 x",
        "migrate exec:x",
        "change vnc x",
    ],
)
def test_no_monitor_command_names_a_file(command: str) -> None:
    """Every monitor command has to match one pattern, which admits no file name."""
    assert relay.COMMANDS.fullmatch(command) is None
    assert relay.COMMANDS.fullmatch("info mtree -f")


@pytest.mark.slow
def test_nothing_is_run_in_a_shell_or_evaluated() -> None:
    forbidden = {"system", "popen", "eval", "exec", "getoutput", "getstatusoutput"}
    for folder in (Path(inspector.__file__).parent, Path(inspector.__file__).parents[1]):
        paths = folder.rglob("*.py") if folder.name == "inspector" else folder.glob("gdb_scripts/*")
        for path in paths:
            if path.suffix != ".py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    assert name not in forbidden, (path, ast.unparse(node))
                    shell = [one for one in node.keywords if one.arg == "shell"]
                    assert not shell, (path, ast.unparse(node))
