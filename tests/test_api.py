"""The interface for scripts, and the examples of its page in the manual."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import inspector
from inspector.checks.verdict import Verdict
from inspector.errors import BadData, TargetNotSupported
from tests.fixtures import CAPTURES, SMALL, opened

PAGE = Path(inspector.__file__).parent / "manual" / "api.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run_example(code: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "example"})
    return out.getvalue()


@pytest.fixture
def _host_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host.core.zst").symlink_to(SMALL)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_host_is_there")
def test_the_example_of_the_longest_lists() -> None:
    lines = run_example(EXAMPLES[0]).splitlines()
    assert lines[0] == "gfn 0x1913: 32 entries of 1 guests"
    assert lines[1] == "gfn 0x20: 15 entries of 15 guests"
    assert len(lines) == 3


@pytest.mark.usefixtures("_host_is_there")
def test_the_example_of_a_violation(tmp_path: Path) -> None:
    assert run_example(EXAMPLES[1]) == "consistent\n"
    assert not (tmp_path / "violation.core.zst").exists()


def test_what_is_opened_is_what_the_commands_see(tmp_path: Path) -> None:
    host = inspector.open(SMALL)
    assert [vm.lpid for vm in host.vms] == [vm.lpid for vm in opened(SMALL).snapshot.vms]
    assert host.check().verdict is Verdict.CONSISTENT
    document = host.check_json()
    assert (document["schema"], document["verdict"]) == ("inspector.check/1", "consistent")
    assert host.origin.read_path == "a capture"


@pytest.mark.parametrize("path", CAPTURES[:3], ids=lambda path: path.name)
def test_a_capture_of_it_opens_again(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.core.zst"
    size = inspector.open(path).capture(again, why="a test")
    assert size == again.stat().st_size
    facts = inspector.open(str(again)).origin.facts
    assert facts is not None
    assert facts["why"] == "a test"


def test_errors_are_those_of_the_commands(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no file"):
        inspector.open(tmp_path / "none")
    with (
        pytest.raises(TargetNotSupported, match="gdb:HOST:PORT"),
        inspector.attach(str(SMALL)),
    ):
        pass
    with pytest.raises(AttributeError, match="nothing"):
        inspector.nothing  # noqa: B018


@pytest.mark.parametrize("name", inspector.__all__)
def test_every_name_of_the_package_is_there(name: str) -> None:
    assert getattr(inspector, name)
