"""Captures: ELF cores that hold the bytes that an inspection read, and nothing else.

A capture carries the kernel's own VMCOREINFO and a note of this tool with
the layout profile and the facts about its origin, so it opens without any
other file.  The core is compressed as one zstd frame.

The note is JSON (``CAPTURE_FORMAT`` 1)::

    {"format": 1, "profile": {...}, "facts": {"taken": "...", ...}, "ram": [[0, 4294967296]]}

``ram`` has the address and the size in bytes of every range in which the
machine has memory.  Without it, memory that does not exist cannot be told from
memory that was not read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspector.dumps.elfcore import ElfCore, Note, write_core
from inspector.errors import BadData, InspectorError
from inspector.image.profile import Profile
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges
from inspector.memory.segments import SegmentedMemory
from inspector.storage import DAMAGE, Output, parsed_json

__all__ = ["CAPTURE_FORMAT", "Capture", "core_of", "read_capture", "write_capture"]

CAPTURE_FORMAT = 1
NOTE_NAME = "INSPECTOR"
VMCOREINFO = "VMCOREINFO"
COMPRESSION_LEVEL = 12


@dataclass(frozen=True)
class Capture:
    """The content of a capture: the memory, the layout profile, and the facts."""

    memory: SegmentedMemory
    profile: Profile
    facts: dict[str, str]


def read_capture(core: ElfCore) -> Capture | None:
    """Return the capture in an ELF core, None if the core has no note of this tool.

    Raises:
        BadData: the note is damaged or of a newer format.
    """
    note = core.note(NOTE_NAME)
    if note is None:
        return None
    profile, facts, ram = _taken_apart(note)
    return Capture(core.memory.within(ram), profile, facts)


def _taken_apart(note: bytes) -> tuple[Profile, dict[str, str], Ranges | None]:
    """Return the profile, the facts and the memory ranges in the note of a capture.

    Raises:
        BadData: the note is damaged or of a newer format.
    """
    try:
        raw = parsed_json(note)
        if raw["format"] != CAPTURE_FORMAT:
            raise BadData(
                f"the capture has format {raw['format']}, this version reads {CAPTURE_FORMAT}"
            )
        facts = {str(key): str(value) for key, value in raw["facts"].items()}
        profile = json.dumps(raw["profile"])
        ram = _ranges(raw["ram"]) if "ram" in raw else None
    except DAMAGE as error:
        raise BadData(f"the capture's own note is damaged: {error!r}") from error
    return Profile.from_json(profile), facts, ram


def _ranges(rows: list[list[int]]) -> Ranges:
    """Return the ranges of the rows ``[address, size]`` of ``ram``."""
    starts, sizes = zip(*rows, strict=True) if rows else ((), ())
    return Ranges(addresses(starts), addresses(sizes))


def write_capture(where: Path | Output, capture: Capture) -> int:
    """Write a capture and return its size in bytes.

    Raises:
        BadData: it cannot be written, or could not be read back.
    """
    import zstandard

    core = core_of(capture)
    packed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True).compress(core)
    output = where if isinstance(where, Output) else Output(where)
    output.write(packed)
    return len(packed)


def core_of(capture: Capture) -> bytes:
    """Return a capture as an uncompressed ELF core, which opens like a compressed one.

    Raises:
        BadData: the core could not be read back: its profile is impossible, or
            a fact is not valid text (names of files on Linux need not be).
    """
    note: dict[str, Any] = {
        "format": CAPTURE_FORMAT,
        "profile": capture.profile.to_json(),
        "facts": capture.facts,
    }
    ram = capture.memory.ram
    if ram is not None:
        note["ram"] = list(zip(ram.starts.tolist(), ram.sizes.tolist(), strict=True))
    text = json.dumps(note).encode()
    # A note that could not be read back is refused now, not when the capture is needed.
    try:
        _taken_apart(text)
    except InspectorError as error:
        raise BadData(f"cannot make a capture of this target: {error}") from error
    return write_core(
        capture.memory,
        (
            Note(VMCOREINFO, 0, capture.profile.vmcoreinfo.encode("ascii", "replace")),
            Note(NOTE_NAME, 0, text),
        ),
        capture.profile.byte_order,
    )
