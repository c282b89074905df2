"""Texts: of captures, recordings and expectations, and those of QEMU and a lender."""

from __future__ import annotations

import functools
import json
import random

from fixtures.synthetic import build
from inspector.capture import NOTE_NAME, Capture, read_capture
from inspector.dumps.elfcore import ElfCore, Note
from inspector.following.calls import read_calls
from inspector.following.replay import replay
from inspector.following.stores import stored_range
from inspector.image.elf import unpacked
from inspector.kvm.collect import collect, vm_list
from inspector.live.direct import hva_of
from inspector.live.mtree import large_blocks, parse_mtree
from inspector.memory.numbers import addresses
from inspector.memory.ranges import Ranges
from inspector.memory.segments import SegmentedMemory
from inspector.questions.expected import departures, read_expected
from inspector.session import Acquired
from inspector.structures.space import KernelSpace
from tests.connection.test_mtree import MTREE
from tests.fixtures import DIRECTORY, description, opened
from tests.fuzz.mutate import json_tree, text
from tests.fuzz.target import Target, asked, saved

__all__ = ["TEXTS"]

LINES = 60
RECORDINGS = DIRECTORY.parent / "recordings"
STALE = DIRECTORY / "powernv9-stale.core.zst"
RAMBLOCK = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
            ppc_spapr.ram   64 KiB  0x0000000000000000 0x0000000080000000 0x0000000080000000 0x00007f0000000000 rw
"""  # noqa: E501


@functools.cache
def _memory() -> SegmentedMemory:
    return build([]).memory


def _notes() -> tuple[bytes, ...]:
    made = build([])
    note = {"format": 1, "profile": made.profile.to_json(), "facts": {"taken": "2026"}}
    note["ram"] = [[0, 1 << 20], [1 << 21, 1 << 20]]
    return (json.dumps(note).encode(),)


def read_note(data: bytes) -> None:
    """Read a capture with this note."""
    capture = read_capture(ElfCore(_memory(), (Note(NOTE_NAME, 0, data),)))
    assert isinstance(capture, Capture)
    kernel = KernelSpace(capture.memory, capture.profile)
    collect(kernel, vm_list(kernel))


@functools.cache
def _recordings() -> tuple[bytes, ...]:
    lines = unpacked(RECORDINGS / "powernv9-random.jsonl.zst").splitlines(keepends=True)
    return tuple(b"".join([lines[0], *lines[1:LINES][:count]]) for count in (4, 20, LINES))


@functools.cache
def _recorded() -> Acquired:
    return opened(RECORDINGS / "powernv9-random.core.zst")


def follow(data: bytes) -> None:
    """Replay a recording, and compare it with the capture of its end."""
    replay(read_calls(saved(data)), _recorded().snapshot)


def _line_of_json(data: bytes, chance: random.Random) -> bytes:
    """Change one line of JSON, or the text as a whole."""
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    if chance.random() < 0.8:
        lines[at] = json_tree(lines[at], chance)
        return b"\n".join(lines)
    return text(data, chance)


def _expectations() -> tuple[bytes, ...]:
    return (json.dumps(description(STALE)["expected"]).encode(),)


def expect(data: bytes) -> None:
    """Compare a capture with an expectation."""
    departures(read_expected(saved(data)), opened(STALE).snapshot)


def _said_by_qemu() -> tuple[bytes, ...]:
    rest = ("Host virtual address for 0x0 (ppc.ram) is 0x7f0000000000", "std r9,-8(r4)")
    return tuple(one.encode() for one in (MTREE, RAMBLOCK, *rest, "stdux r9,r4,r5", "dcbz 0,r3"))


def hear_qemu(data: bytes) -> None:
    """Take a text as each answer of QEMU's monitor, and as an instruction."""
    said = data.decode("utf-8", "replace")
    large_blocks(said)
    stored_range(said, lambda _: 9)
    asked(hva_of, said)
    ram = parse_mtree(said).ram
    assert isinstance(ram, Ranges)
    ram.cover(addresses([0, 1 << 32, (1 << 64) - 1]), 16)


TEXTS = {
    "capture": Target(_notes, read_note, json_tree),
    "recording": Target(_recordings, follow, _line_of_json),
    "expectation": Target(_expectations, expect, json_tree),
    "QEMU's monitor": Target(_said_by_qemu, hear_qemu, text),
}
