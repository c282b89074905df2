"""The class of targets, and the files that inputs are put into."""

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
"""Number of places that are also read one by one."""
_HELD: list[tempfile.TemporaryDirectory[str]] = []


class Target(NamedTuple):
    """A target: its first inputs, the function that takes one, and the mutator.

    ``allowed`` are errors that it may raise besides those of the inspector.
    """

    seeds: Callable[[], Sequence[bytes]]
    run: Callable[[bytes], object]
    mutate: Mutator
    allowed: tuple[type[Exception], ...] = ()


@functools.cache
def folder() -> Path:
    """Return a folder for inputs, in memory if the host has such a file system."""
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
    """Call a function and take its whole answer, or an error of the inspector."""
    with suppress(InspectorError):
        answer = question(*arguments)
        if isinstance(answer, Iterator):
            list(answer)


def cut_at(data: bytes) -> int:
    """Return where the second part of an input of two begins; its first four bytes say so."""
    return 4 + min(int.from_bytes(data[:4], "little"), max(0, len(data) - 4))


def joined(first: bytes, second: bytes) -> bytes:
    """Return an input of two parts."""
    return len(first).to_bytes(4, "little") + first + second


def read_around(memory: AddressSpace, places: Iterable[int]) -> None:
    """Read at, before, across and after some places, in both ways."""
    where = addresses(sorted({place % ADDRESSES for place in places}))
    for length in (8, PAGE):
        memory.read_many(where, length)
    for place in where[:ALONE].tolist():
        asked(memory.read, place - 4, 8)
        asked(memory.read, place, 3 * PAGE)
