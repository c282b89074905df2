"""The bench runs, and says what it measured; no time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import main
from tests.bench.measure import Row
from tests.bench.report import page, table


@pytest.mark.slow
def test_the_bench_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    capture = Path(__file__).parent.parent / "fixtures/captures/powernv9-mixed.core.zst"
    arguments = ["--only", "start", "--only", "dumps", "--repeat", "1", "--dump", str(capture)]
    main([*arguments, "--json", str(path)])
    document = json.loads(path.read_text())
    names = [row["name"] for row in document["rows"]]
    assert len(names) == 4
    assert all(row["value"] > 0 for row in document["rows"])
    main(["--from", str(path)])
    said = capsys.readouterr().out
    assert all(name in said for name in names)


@pytest.mark.parametrize(
    ("row", "ratio", "met"),
    [
        (Row("a", 3.0, "s", bound=2.0, at_most=1.5), 1.5, True),
        (Row("a", 3.1, "s", bound=2.0, at_most=1.5), 1.55, False),
        (Row("a", 3.0, "s", bound=2.0, at_most=2, goal=2.9), 1.5, False),
        (Row("a", 3.0, "s", at_most=2), None, False),
        (Row("a", None, "s", bound=2.0, at_most=2), None, None),
        (Row("a", 3.0, "s"), None, None),
    ],
)
def test_goals(row: Row, ratio: float | None, met: bool | None) -> None:
    assert row.ratio == ratio
    assert row.met is met
    assert any(row.name in line for line in table([row]))
    document = {"processors": 1, "load": 0.0, "python": "", "numpy": "", "repeat": 1}
    assert any(line.startswith("| a |") for line in page(document, [row]))
