"""What the targets share: what one is, and files to put inputs into."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from inspector.errors import InspectorError
from inspector.memory.interface import AddressSpace
from inspector.memory.numbers import addresses
from tests.fuzz.mutate import Mutator

__all__ = ["PAGE", "Target", "asked", "cut_at", "folder", "joined", "read_around", "saved"]

PAGE = 1 << 12
ADDRESSES = 1 << 64
ALONE = 4
"""So many places are read one by one, too."""
_HELD: list[tempfile.TemporaryDirectory[str]] = []


class Target(NamedTuple):
    """What is fuzzed: inputs to begin with, what to do with one, and how one is changed.

    ``allowed`` are errors it may raise besides those of the inspector.
    """

    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    mutate: Mutator
    allowed: tuple[type[Exception], ...] = ()


@functools.cache
def folder() -> Path:
    """Return a folder for inputs, in memory where there is such a place."""
    shared = Path("/dev/shm")
    held = tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None)
    _HELD.append(held)
    return Path(held.name)


def saved(data: bytes, name: str = "input") -> Path:
    """Write an input to a file."""
    path = folder() / name
    path.write_bytes(data)
    return path


def asked(question: Callable[..., object], *arguments: object) -> None:
    """Ask a question and take the whole answer, or an error of the inspector."""
    with suppress(InspectorError):
        answer = question(*arguments)
        if isinstance(answer, Iterator):
            list(answer)


def cut_at(data: bytes) -> int:
    """Return where the second part of an input of two begins, behind the first four bytes."""
    return 4 + min(int.from_bytes(data[:4], "little"), max(0, len(data) - 4))


def joined(first: bytes, second: bytes) -> bytes:
    """Return an input of two parts."""
    return len(first).to_bytes(4, "little") + first + second


def read_around(memory: AddressSpace, places: Iterable[int]) -> None:
    """Read at, before, across and behind some places in both ways."""
    where = addresses(sorted({place % ADDRESSES for place in places}))
    for length in (8, PAGE):
        memory.read_many(where, length)
    for place in where[:ALONE].tolist():
        asked(memory.read, place - 4, 8)
        asked(memory.read, place, 3 * PAGE)
