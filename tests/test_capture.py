"""The note of a capture, which may come from anyone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fixtures.synthetic import build
from inspector.capture import NOTE_NAME, read_capture
from inspector.dumps.elfcore import ElfCore, Note
from inspector.errors import BadData

IMAGE = build([])
NOTE = {"format": 1, "profile": IMAGE.profile.to_json(), "facts": {"taken": "2026-01-01"}}


def core(note: bytes) -> ElfCore:
    return ElfCore(IMAGE.memory, (Note(NOTE_NAME, 0, note),))


def test_a_whole_note() -> None:
    capture = read_capture(core(json.dumps(NOTE).encode()))
    assert capture is not None
    assert capture.profile == IMAGE.profile
    assert capture.facts == NOTE["facts"]


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"facts": ["taken"]},
        {"facts": {"taken": "\ud800"}},
        {"facts": {"\udc00": "now"}},
        {"profile": 3},
        {"profile": {}},
    ],
)
def test_a_damaged_note(changes: dict[str, Any]) -> None:
    with pytest.raises(BadData):
        read_capture(core(json.dumps(NOTE | changes).encode()))


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000])
def test_no_note(note: bytes) -> None:
    with pytest.raises(BadData, match="own note is damaged"):
        read_capture(core(note))
