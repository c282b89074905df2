"""A failure of the tool itself: exit code 4, one line, and a traceback only on request."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inspector.__main__ import EXIT_FAILED, NO_MEMORY, TRACEBACK
from tests.fixtures import DIRECTORY

TARGET = str(DIRECTORY / "powernv9-singles.core.zst")
ROOT = Path(__file__).parent.parent


def shell(command: str, folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a shell in which $I is the inspector and $C a capture."""
    return subprocess.run(
        ["/bin/bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=60,
        env={
            **os.environ,
            "I": f"{sys.executable} -m inspector",
            "C": TARGET,
            "PYTHONPATH": str(ROOT),
            **extra,
        },
    )


def failed(done: subprocess.CompletedProcess[str]) -> str:
    """Check that the tool failed with one line, and return that line."""
    assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("inspector: the tool itself failed")
    assert "this is no verdict on the target" in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "click", "zstandard"])
def test_a_module_that_cannot_be_imported(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('brok\\x1b[31men')")
    line = failed(shell("$I check $C", tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}"))
    assert "ImportError: brok\\x1b[31men" in line
    assert "PYTHONPATH" in line


def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("1 / 0")
    here = f"{tmp_path}:{ROOT}"
    assert "ZeroDivisionError" in failed(shell("$I check $C", tmp_path, PYTHONPATH=here))
    asked = shell("$I check $C", tmp_path, PYTHONPATH=here, **{TRACEBACK: "1"})
    assert asked.returncode == EXIT_FAILED
    assert "Traceback (most recent call last)" in asked.stderr


@pytest.mark.slow
def test_too_little_memory(tmp_path: Path) -> None:
    done = shell("ulimit -v 110000; $I check $C", tmp_path)
    assert failed(done) == NO_MEMORY.decode().strip()
    assert shell("ulimit -v 400000; $I check $C", tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed: str, tmp_path: Path) -> None:
    done = shell(f"$I check $C {closed}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_a_closed_stream_is_nobody_elses_file(tmp_path: Path) -> None:
    done = shell("$I capture $C -o out >&- 2>&-; $I check out", tmp_path)
    assert done.returncode == 0
    lost = shell("$I layout $C -o - >&-", tmp_path)
    assert lost.returncode == 3
    assert lost.stderr.startswith("inspector: cannot write standard output: ")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["--help", "--version", "rmap $C"])
def test_a_reader_that_has_gone(command: str, tmp_path: Path) -> None:
    done = shell(f"set -o pipefail; (sleep 0.5; $I {command}) | true", tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.slow
def test_a_plugin_that_ends_the_process(tmp_path: Path) -> None:
    info = tmp_path / "my_checks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-checks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[inspector.invariants]\nbad = my_checks:BAD\n")
    (tmp_path / "my_checks.py").write_text("raise SystemExit(0)")
    done = shell("$I check $C", tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert done.stdout.endswith("verdict: consistent\n")
    assert done.stderr.startswith("inspector: the plug-in bad (my_checks:BAD) is passed over")
