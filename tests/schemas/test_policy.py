"""Published schemas match the descriptions, and a version keeps its promises."""

from __future__ import annotations

import copy
import enum
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fixtures.schemas import __main__ as command
from fixtures.schemas.__main__ import BEGIN, PAGE, PROMISED, SCHEMAS, page, promised
from fixtures.schemas.build import broken_promises, promises_of, schema_of, text_of
from fixtures.schemas.documents import DOCUMENTS
from fixtures.schemas.forms import Document, integer, later, structure
from inspector.checks.findings import Severity
from inspector.checks.verdict import Verdict
from inspector.diagnosis import StepOutcome
from inspector.encoding import SlotForm
from inspector.errors import Stage
from inspector.kvm.snapshot import Part
from inspector.model.vm import EntryState, LeafState
from inspector.questions.changes import Change, LeafKind, TableName
from inspector.questions.parts import Mark
from inspector.schemas import names, schema_text

WRITE = "run 'python -m fixtures.schemas' and look at what it changes"
BY_LABEL = {document.label: document for document in DOCUMENTS}


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.label)
def test_the_published_schema_is_the_described_one(document: Document) -> None:
    schema = schema_of(document)
    assert schema_text(f"{document.name}.{document.version}") == text_of(schema), WRITE
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"].startswith("urn:")
    references = set(re.findall(r'"\$ref": "([^"]*)"', text_of(schema)))
    assert all(one.startswith("#/$defs/") for one in references), "one file is enough"


def test_every_version_is_still_published() -> None:
    assert {f"{name}.json" for name in names()} == {file.name for file in SCHEMAS.glob("*.json")}
    labels = {
        f"inspector.{name}/{version}" for name, version in (one.split(".") for one in names())
    }
    assert labels == set(promised()), "the file of a version stays when the next one comes"


def test_the_manual_has_the_same_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert BEGIN in text
    assert page(text) == text, WRITE


@pytest.mark.parametrize("label", sorted(promised()))
def test_a_version_keeps_what_it_has_promised(label: str) -> None:
    document = BY_LABEL.get(label)
    if document is None:
        assert any(one.name == label.split("/")[0].partition(".")[2] for one in DOCUMENTS)
        return
    now = promises_of(schema_of(document))
    broken = list(broken_promises(promised()[label], now))
    assert not broken, (
        f"{label} no longer keeps what it has promised: {'; '.join(broken)}. Give the document its "
        "next version in fixtures/schemas/documents.py and in the report, or keep the promise "
        "(inspector/manual/json.md, 'What stays and what may change')"
    )
    assert promised()[label] == now, f"{label} has something new that is not recorded: {WRITE}"


def test_every_document_is_promised() -> None:
    assert set(BY_LABEL) <= set(promised()), WRITE
    assert PROMISED.is_file()


def _vm(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["properties"]["vms"]["items"]
    return found


def _retyped(schema: dict[str, Any]) -> None:
    _vm(schema)["properties"]["entries"]["type"] = "string"


def _narrowed(schema: dict[str, Any]) -> None:
    _vm(schema)["properties"]["entries"]["type"] = ["integer", "null"]


def _optional(schema: dict[str, Any]) -> None:
    _vm(schema)["required"].remove("entries")


def _removed(schema: dict[str, Any]) -> None:
    _optional(schema)
    del _vm(schema)["properties"]["entries"]


def _grown(schema: dict[str, Any]) -> None:
    schema["properties"]["verdict"]["enum"].append("perhaps")


def _new_in_all(schema: dict[str, Any]) -> None:
    _vm(schema)["properties"]["basis"] = {"type": "string"}
    _vm(schema)["required"].append("basis")


def _new_form(schema: dict[str, Any]) -> None:
    schema["$defs"]["evidence"]["properties"]["value"]["type"].append("integer")


def _open_value_lost(schema: dict[str, Any]) -> None:
    _vm(schema)["properties"]["not_judged"]["items"]["properties"]["part"]["examples"].pop()


def _inner(schema: dict[str, Any]) -> None:
    del schema["$defs"]["evidence"]["properties"]["value"]


@pytest.mark.parametrize(
    "change",
    [
        *(_retyped, _narrowed, _optional, _removed, _grown, _open_value_lost, _inner),
        *(_new_in_all, _new_form),
    ],
)
def test_what_makes_a_new_version(change: Callable[[dict[str, Any]], None]) -> None:
    schema = schema_of(BY_LABEL["inspector.check/1"])
    changed = copy.deepcopy(schema)
    change(changed)
    assert list(broken_promises(promises_of(schema), promises_of(changed)))


def test_what_may_be_added() -> None:
    schema = schema_of(BY_LABEL["inspector.check/1"])
    changed = copy.deepcopy(schema)
    vm = _vm(changed)
    read = later("0.2.0", structure("what a sample rests on", {"words": integer("read")}))
    added = structure("a VM", {"rest": read})
    vm["properties"] |= added["properties"]
    vm["required"] += added["required"]
    vm["properties"]["not_judged"]["items"]["properties"]["part"]["examples"].append("other")
    assert list(broken_promises(promises_of(schema), promises_of(changed))) == []


def test_nothing_is_written_that_breaks_a_promise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = promised()
    record["inspector.resume/1"]["machine"] = {"required": True, "type": "string"}
    for name in ("PROMISED", "PAGE"):
        monkeypatch.setattr(command, name, tmp_path / name)
    monkeypatch.setattr(command, "SCHEMAS", tmp_path)
    command.PROMISED.write_text(json.dumps(record))
    assert command.main() == 1
    said = capsys.readouterr().err
    assert "inspector.resume/1: machine: removed" in said
    assert "nothing was written; give the document its next version" in said
    assert [path.name for path in tmp_path.iterdir()] == ["PROMISED"]


def values(label: str, *path: str) -> set[object]:
    """Return the values of an enumeration, found by the names on the way to it."""
    node: Any = schema_of(BY_LABEL[label])
    for name in path:
        if "$ref" in node:
            node = schema_of(BY_LABEL[label])["$defs"][node["$ref"].rpartition("/")[2]]
        node = node["$defs"][name[1:]] if name[0] == "$" else node["properties"][name]
        node = node.get("items", node)
    return set(node.get("enum") or node.get("examples")) - {None}


@pytest.mark.parametrize(
    ("label", "path", "kind"),
    [
        ("check", "verdict", Verdict),
        ("check", "vms not_judged part", Part),
        ("invariants", "invariants reads", Part),
        ("lookup", "$rmap_entry mark", Mark),
        ("lookup", "l2_pages leaf_state", LeafState),
        ("lookup", "l1_pages slots form", SlotForm),
        ("diff", "vms change", Change),
        ("diff", "vms turned after", EntryState),
        ("diff", "vms leaves table", TableName),
        ("diff", "vms leaves kind", LeafKind),
        ("doctor", "steps outcome", StepOutcome),
    ],
)
def test_enumerations_have_the_values_of_the_code(
    label: str, path: str, kind: type[enum.Enum]
) -> None:
    found = values(f"inspector.{label}/1", *path.split())
    assert found in ({one.value for one in kind}, {one.name.lower() for one in kind})


def test_a_severity_is_one_of_the_code_or_that_of_the_tool_itself() -> None:
    found = values("inspector.check/1", "$finding", "severity")
    assert found == {*(one.value for one in Severity), "tool"}


def test_the_steps_of_doctor_are_named() -> None:
    schema = schema_of(BY_LABEL["inspector.doctor/1"])
    meaning = schema["properties"]["steps"]["items"]["properties"]["step"]["description"]
    assert all(f"`{step.value}`" in meaning for step in Stage)
