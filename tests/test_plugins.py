"""Third-party checks and reports, from a distribution that is made for the test."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.checks.base import all_invariants
from inspector.plugins import PluginWarning
from tests.fixtures import SMALL
from tests.test_api import EXAMPLES

INVARIANTS = "inspector.invariants"
REPORTS = "inspector.reports"


def distribution(folder: Path, code: str, entry_points: dict[str, dict[str, str]]) -> Path:
    """Write the files that an installed package has in site-packages."""
    (folder / "my_checks.py").write_text(code)
    info = folder / "my_checks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-checks\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the distribution on Python's path."""
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); from inspector.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def example(tmp_path: Path) -> Path:
    points = {
        INVARIANTS: {"short-lists": "my_checks:SHORT_LISTS"},
        REPORTS: {"csv": "my_checks:csv"},
    }
    return distribution(tmp_path, EXAMPLES[3], points)


@pytest.mark.slow
def test_the_example_of_the_manual_judges(example: Path) -> None:
    done = run(example, "check", str(SMALL), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    (finding,) = json.loads(done.stdout)["vms"][0]["findings"]
    assert (finding["invariant"], finding["severity"]) == ("short-lists", "bookkeeping")
    assert finding["summary"] == "gfn 0x1913 has a list of 32"
    assert "short-lists  (bookkeeping)" in run(example, "check", "--list").stdout


@pytest.mark.slow
def test_the_example_of_the_manual_reports(example: Path) -> None:
    output = example / "out.csv"
    done = run(example, "report", str(SMALL), "--form", "csv", "-o", str(output))
    assert (done.returncode, done.stderr) == (1, "")
    assert output.read_text() == "lpid,verdict,entries\n1,violations,218\n"
    unknown = run(example, "report", str(SMALL), "--form", "xml", "-o", str(output))
    assert unknown.returncode == 2
    assert "there are: page, csv" in unknown.stderr


BROKEN = {
    "does not import": ("raise RuntimeError('no')", "RuntimeError('no')"),
    "has no such name": ("", "has no attribute 'SHORT_LISTS'"),
    "is no invariant": ("SHORT_LISTS = 5", "it provides int, not an Invariant"),
    "fails": (
        EXAMPLES[3].replace("def find(checked):", "def find(checked):\n    1 / 0"),
        "division",
    ),
    "finds nonsense": (
        EXAMPLES[3].replace("def find(checked):", "def find(checked):\n    yield 7\n"),
        "7 is no finding",
    ),
    "takes a name": (
        re.sub(r'id="short-lists"', 'id="shadow-lpid"', EXAMPLES[3]),
        "there is an invariant shadow-lpid already",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_check_is_named_and_passed_over(kind: str, tmp_path: Path) -> None:
    code, why = BROKEN[kind]
    folder = distribution(tmp_path, code, {INVARIANTS: {"broken": "my_checks:SHORT_LISTS"}})
    done = run(folder, "check", str(SMALL))
    # a check that cannot be loaded does not count, and one that fails leaves its question open
    fails = kind in ("fails", "finds nonsense")
    assert done.returncode == (3 if fails else 0)
    assert done.stdout.endswith(f"verdict: {'inconclusive' if fails else 'consistent'}\n")
    assert ("the plug-in broken failed" in done.stdout) is fails
    (line,) = done.stderr.splitlines()
    assert line.startswith("inspector: the plug-in broken")
    assert why in line


@pytest.mark.slow
@pytest.mark.parametrize("code", ["def csv(a, b):\n    1 / 0", "def csv(a, b):\n    return 5"])
def test_a_broken_report_is_an_error_that_names_it(code: str, tmp_path: Path) -> None:
    folder = distribution(tmp_path, code, {REPORTS: {"csv": "my_checks:csv"}})
    output = tmp_path / "out"
    done = run(folder, "report", str(SMALL), "--form", "csv", "-o", str(output))
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("inspector: the plug-in csv could not make its report")
    assert not output.exists()


@pytest.fixture
def _fresh_invariants() -> Iterator[None]:
    all_invariants.cache_clear()
    yield
    all_invariants.cache_clear()
    sys.modules.pop("my_checks", None)


@pytest.mark.usefixtures("_fresh_invariants")
def test_scripts_get_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "", {INVARIANTS: {"broken": "my_checks:NOTHING"}})
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.warns(PluginWarning, match=r"broken \(my_checks:NOTHING\) is passed over"):
        ids = [invariant.id for invariant in all_invariants()]
    assert "shadow-leaf-covered" in ids
