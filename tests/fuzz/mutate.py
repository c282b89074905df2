"""Changes to inputs, by the meaning of their fields and at random.

Every mutator takes an input and a source of randomness, and returns another
input; the same randomness gives the same input.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["EDGES", "Fields", "Mutator", "binary", "json_tree", "text"]

Mutator = Callable[[bytes, random.Random], bytes]

EDGES = (
    *(0, 1, 2, 3, 7, 8, 0xFF, 0x7FFF, 0xFFFF, 1 << 12, 1 << 16, 1 << 24, 1 << 30),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 52, 1 << 62),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 8, (1 << 64) - 2, (1 << 64) - 1),
    *(0xC000_0000_0000_0000, 0xC008_0000_0000_0000, 0xC00F_FFFF_FFFF_FFF8),
)
"""Numbers that are likely to go wrong."""

SPREAD = (-4096, -64, -8, -1, 1, 8, 64, 4096)
MOST_CHANGES = 6
LONGEST = 64
"""The most bytes that one change adds or removes."""
WEIGHT = 24
"""The largest weight of one kind of fields; smaller kinds weigh as much as they have fields."""


class Fields(NamedTuple):
    """Integers in an input: their offsets, and the size and byte order of each."""

    places: Sequence[int]
    size: int
    order: str


class _Field(NamedTuple):
    place: int
    size: int
    order: str


def binary(known: Callable[[bytes], Iterable[Fields]]) -> Mutator:
    """Return a mutator that mostly puts chosen numbers into fields."""

    def mutate(data: bytes, chance: random.Random) -> bytes:
        changed = bytearray(data)
        fields = [one for one in known(data) if one.places]
        weights = [min(len(one.places), WEIGHT) for one in fields]
        for _ in range(_changes(chance)):
            if not fields or chance.random() < 0.2:
                _havoc(changed, chance)
                continue
            field, other = (_field(one, chance) for one in chance.choices(fields, weights, k=2))
            if _fits(field, changed):
                _put(changed, field, other, chance)
        return bytes(changed)

    return mutate


def _field(fields: Fields, chance: random.Random) -> _Field:
    return _Field(chance.choice(fields.places), fields.size, fields.order)


def json_tree(data: bytes, chance: random.Random) -> bytes:
    """Change values, keys and the shape of a JSON document, now and then its text."""
    if chance.random() < 0.2:
        return text(data, chance)
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return text(data, chance)
    for _ in range(_changes(chance)):
        tree = _changed_tree(tree, chance)
    with contextlib.suppress(RecursionError, ValueError):
        return json.dumps(tree).encode()
    return data


def text(data: bytes, chance: random.Random) -> bytes:
    """Change numbers in a text, or lines, or bytes."""
    changed = bytearray(data)
    for _ in range(_changes(chance)):
        way = chance.randrange(4)
        if way == 0 and (numbers := list(re.finditer(rb"[0-9a-f]+", bytes(changed)))):
            match = chance.choice(numbers)
            value = chance.choice(EDGES)
            new = chance.choice((b"%d" % value, b"%x" % value, b"9" * 5000, b"", b"-1"))
            changed[match.start() : match.end()] = new
        elif way == 1 and (lines := bytes(changed).split(b"\n")):
            at = chance.randrange(len(lines))
            lines[at : at + 1] = chance.choice(([], [lines[at]] * 2, [lines[at][::-1]]))
            changed[:] = b"\n".join(lines)
        elif way == 2:
            at = chance.randrange(len(changed) + 1)
            odd = (b"\0", b"\xff\xfe", b"\x1b[2J", b"[" * 3000, b'{"a":' * 2000, b"\\ud800")
            changed[at:at] = chance.choice((*odd, b'"', b"\n", b"NaN", b"1e999"))
        else:
            _havoc(changed, chance)
    return bytes(changed)


def _changes(chance: random.Random) -> int:
    return min(MOST_CHANGES, 1 + int(chance.expovariate(1.0)))


def _fits(field: _Field, data: Sequence[int]) -> bool:
    return 0 <= field.place <= len(data) - field.size


def _put(data: bytearray, field: _Field, other: _Field, chance: random.Random) -> None:
    """Put a number into a field: an edge, a place in the data, another field's, or a near one."""
    old = _value(data, field)
    value = chance.choice(
        (
            chance.choice(EDGES),
            chance.choice(EDGES),
            old + chance.choice(SPREAD),
            old ^ (1 << chance.randrange(8 * field.size)),
            _value(data, other),
            len(data) + chance.choice((-8, -1, 0, 1)),
            field.place,
            other.place,
            chance.getrandbits(64),
        )
    )
    raw = (value % (1 << (8 * field.size))).to_bytes(field.size, _code(field))
    data[field.place : field.place + field.size] = raw


def _code(field: _Field) -> Literal["little", "big"]:
    return "little" if field.order == "<" else "big"


def _value(data: bytearray, field: _Field) -> int:
    return int.from_bytes(data[field.place : field.place + field.size], _code(field))


def _havoc(data: bytearray, chance: random.Random) -> None:
    """Change bytes without regard to their meaning."""
    at = chance.randrange(len(data) + 1)
    length = chance.randrange(1, LONGEST)
    way = chance.randrange(6)
    if way == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif way == 1:
        data[at : at + length] = b""
    elif way == 2:
        data[at:at] = chance.randbytes(length)
    elif way == 3:
        data[at:at] = data[at : at + length]
    elif way == 4:
        data[at:] = b""
    else:
        data[at : at + 8] = struct.pack("<Q", chance.choice(EDGES))[: len(data[at : at + 8])]


def _changed_tree(tree: Any, chance: random.Random) -> Any:
    """Change one node, at any depth."""
    if isinstance(tree, dict) and tree and chance.random() < 0.85:
        key = chance.choice(list(tree))
        if chance.random() < 0.1:
            value = tree.pop(key)
            if chance.random() < 0.5:
                tree[chance.choice(("", "x" * 300, "\x1b[2J", key + "_", "__class__"))] = value
        else:
            tree[key] = _changed_tree(tree[key], chance)
        return tree
    if isinstance(tree, list) and tree and chance.random() < 0.85:
        at = chance.randrange(len(tree))
        if chance.random() < 0.15:
            tree[at : at + 1] = chance.choice(([], [tree[at]] * 2))
        else:
            tree[at] = _changed_tree(tree[at], chance)
        return tree
    if isinstance(tree, str) and chance.random() < 0.4:
        return text(tree.encode("utf-8", "replace"), chance).decode("utf-8", "replace")
    if isinstance(tree, int) and chance.random() < 0.5:
        return tree + chance.choice(SPREAD)
    edge = chance.choice(EDGES)
    return chance.choice(
        (
            *(edge, -edge, hex(edge), f"-{edge:#x}", str(edge), float(edge), 10**400, 1e999, 0.5),
            *(None, True, "", "x", [], {}, [[]], [0, edge], {"": edge}, [tree], tree),
        )
    )
