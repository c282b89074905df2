"""``inspector schema``: the files of the package, printed."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from fixtures.schemas.documents import DOCUMENTS
from inspector.cli import cli


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["schema", *arguments])


def test_every_document_is_listed_and_printed() -> None:
    listed = run().stdout.split()
    described = sorted((document.name, document.version) for document in DOCUMENTS)
    assert listed == [f"{name}.{version}" for name, version in described]
    for name in listed:
        printed = json.loads(run(name).stdout)
        assert printed["$id"].endswith(f":{name.replace('.', ':')}")
        assert json.loads(run(name.partition(".")[0]).stdout) == printed


def test_a_document_that_is_none() -> None:
    for name in ("nothing", "check.99", "../pyproject", ""):
        result = run(name)
        assert result.exit_code == 2
        assert "'inspector schema' lists them" in result.stderr
