"""The dependencies in pyproject.toml, and the manual's page about them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import inspector

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MANUAL = Path(inspector.__file__).parent / "manual"
BOUND = re.compile(r"([\w-]+)>=([\d.]+)")


def asked_for() -> Iterator[tuple[str, str, str]]:
    """Yield extra, package and lower bound; the extra is empty for a package always needed."""
    extras = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, requirements in extras.items():
        for requirement in requirements:
            if not requirement.startswith(PROJECT["name"]):
                match = BOUND.fullmatch(requirement)
                assert match, f"{requirement} has no lower bound, or more than that"
                yield extra, match[1], match[2]


def test_the_manual_lists_every_dependency_with_its_bound() -> None:
    rows = []
    for line in (MANUAL / "dependencies.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.fullmatch(r"[\d.]+", cells[-3]):
            rows.append((cells[0] if len(cells) == 5 else "", *cells[-4:-2]))
    assert sorted(rows) == sorted(asked_for())


def test_the_constraints_name_versions_that_are_admitted() -> None:
    pinned = dict(
        line.split("==") for line in (ROOT / ".ci" / "constraints.txt").read_text().split()
    )
    for extra, package, bound in asked_for():
        if extra == "fuzz":  # not part of CI's environment
            continue
        version = [int(part) for part in re.findall(r"\d+", pinned[package])]
        assert version >= [int(part) for part in bound.split(".")], package


def test_the_version_is_written_once() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    changes = (MANUAL / "changes.md").read_text()
    newest = re.search(r"^## (\d+\.\d+\.\d+)(.*)$", changes, re.MULTILINE)
    assert newest
    assert inspector.__version__ == newest[1] + (".dev0" if newest[2] else "")
