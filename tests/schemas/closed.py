"""Checks documents against the published schemas, and notes which members were seen."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

from inspector.schemas import schema_text

__all__ = ["closed", "described", "document_schema", "hold", "seen"]

Schema = Mapping[str, Any]
REFERENCE = "#/$defs/"
KEPT = 15
"""How many items of a longer list are checked, evenly spread."""


@functools.cache
def document_schema(name: str) -> dict[str, Any]:
    """Return the published schema of a document."""
    text = schema_text(name)
    assert text is not None, f"no schema {name} is published"
    found: dict[str, Any] = json.loads(text)
    return found


def closed(schema: Any) -> Any:
    """Return a copy that allows no member and no value that is not described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    # A member may be called "examples"; the word of the schema language is a list.
    if isinstance(schema.get("required"), list):
        made["additionalProperties"] = False
    if isinstance(schema.get("examples"), list):
        null = [None] if "null" in schema["type"] else []
        made["enum"] = [*schema["examples"], *null]
    return made


@functools.cache
def _validators(name: str) -> tuple[Any, Any]:
    schema = document_schema(name)
    kind = jsonschema.Draft202012Validator
    return kind(schema), kind(closed(schema))


def hold(name: str, document: Any) -> set[str]:
    """Assert that a document matches its schema; return the paths that were seen in it."""
    thin = _thinned(document)
    for validator in _validators(name):
        problems = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(thin)]
        assert not problems, (
            f"{name}: {problems[:5]}; a member that is new is described in "
            "fixtures/schemas/documents.py"
        )
    return set(seen(name, thin))


def _thinned(value: Any) -> Any:
    if isinstance(value, list):
        step = max(1, len(value) // KEPT)
        return [_thinned(one) for one in (*value[::step], *value[-1:][: len(value)])]
    if isinstance(value, dict):
        return {key: _thinned(one) for key, one in value.items()}
    return value


def described(name: str) -> set[str]:
    """Return the paths of everything that a schema describes; common parts begin with ``$``."""
    schema = document_schema(name)
    parts = schema.get("$defs", {})
    roots = [(name, schema), *((f"${part}", parts[part]) for part in parts)]
    return {path for root, one in roots for path in _described(one, root)}


def _described(schema: Schema, path: str) -> Iterator[str]:
    yield path
    for member, one in schema.get("properties", {}).items():
        yield from _described(one, f"{path}.{member}")
    if "items" in schema:
        yield from _described(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _described(schema["additionalProperties"], f"{path}{{}}")
    for number, form in enumerate(schema.get("anyOf", ())):
        yield from _described(form, f"{path}|{number}")
    for value in schema.get("enum", ()):
        yield f"{path}={value}"


def seen(name: str, document: Any) -> Iterator[str]:
    """Yield the paths of ``described`` that a document has."""
    schema = document_schema(name)
    yield from _seen(schema, document, name, schema.get("$defs", {}))


def _seen(schema: Schema, value: Any, path: str, parts: Mapping[str, Schema]) -> Iterator[str]:
    yield path
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REFERENCE)
        yield from _seen(parts[name], value, f"${name}", parts)
    for number, form in enumerate(schema.get("anyOf", ())):
        if jsonschema.Draft202012Validator({**form, "$defs": dict(parts)}).is_valid(value):
            yield from _seen(form, value, f"{path}|{number}", parts)
    if "enum" in schema:
        yield f"{path}={value}"
    if isinstance(value, list) and "items" in schema:
        for item in value:
            yield from _seen(schema["items"], item, f"{path}[]", parts)
    if isinstance(value, dict):
        for member, one in value.items():
            if member in schema.get("properties", {}):
                yield from _seen(schema["properties"][member], one, f"{path}.{member}", parts)
            elif isinstance(schema.get("additionalProperties"), dict):
                yield from _seen(schema["additionalProperties"], one, f"{path}{{}}", parts)
