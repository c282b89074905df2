"""A writer of compressed symbol tables, in every form that kernels have had."""

from __future__ import annotations

import re
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass

__all__ = ["Form", "write"]

Symbol = tuple[str, int]
"""Name and address; symbols come in the order of their addresses."""

SHARED = ("kvm", "_list", "sys_", "Tk", "page")
"""The texts of the tokens that are more than one character."""

GROUP = 256


@dataclass(frozen=True)
class Form:
    """The form of a table.

    ``values``: ``"base"``, ``"percpu"`` (positive offsets are absolute),
    ``"place"`` (an offset counts from its own address), or ``"absolute"``.
    ``values_first``: the values come before the names, as up to Linux 6.3.
    ``order_bytes``: length in bytes of an entry of the order by name, 0 for no
    such table.
    """

    values: str = "base"
    values_first: bool = False
    order_bytes: int = 3
    alignment: int = 8
    byte_order: str = "<"


class _Blob:
    def __init__(self, place: int, alignment: int) -> None:
        self.data, self._place, self._alignment = b"", place, alignment

    def add(self, data: bytes, alignment: int = 0) -> int:
        """Append with an alignment; return the physical address."""
        self.data += bytes(-(self._place + len(self.data)) % (alignment or self._alignment))
        self.data += data
        return self._place + len(self.data) - len(data)

    @property
    def next(self) -> int:
        end = self._place + len(self.data)
        return end + -end % self._alignment


_SHARED = re.compile(b"|".join(re.escape(text.encode()) for text in SHARED))


def write(
    symbols: Sequence[Symbol], form: Form, place: int = 0, text: Container[str] = ()
) -> bytes:
    """Return the tables of some symbols as they lie at a physical address.

    The symbols named in ``text`` are functions, all others data.
    """
    order = form.byte_order
    tokens = _tokens(symbols)
    rows = [_compressed("DT"[name in text] + name, tokens) for name, _ in symbols]
    blob = _Blob(place, form.alignment)
    if form.values_first:
        _values(blob, symbols, form)
    blob.add(struct.pack(order + "I", len(symbols)))
    names, markers = b"", []
    for i, row in enumerate(rows):
        if i % GROUP == 0:
            markers.append(len(names))
        names += _length(len(row)) + row
    blob.add(names)
    blob.add(struct.pack(f"{order}{len(markers)}I", *markers))
    by_name = sorted(range(len(symbols)), key=lambda i: symbols[i][0])
    sequence = b"".join(i.to_bytes(form.order_bytes or 4, "big") for i in by_name)
    if form.values_first and form.order_bytes:
        blob.add(sequence)
    table = b"".join(token + b"\0" for token in tokens)
    blob.add(table)
    index, position = [], 0
    for token in tokens:
        index.append(position)
        position += len(token) + 1
    blob.add(struct.pack(f"{order}256H", *index))
    if not form.values_first:
        _values(blob, symbols, form)
        if form.order_bytes:
            blob.add(sequence)
    blob.add(bytes(-(place + len(blob.data)) % 4096))
    return blob.data


def _values(blob: _Blob, symbols: Sequence[Symbol], form: Form) -> None:
    order, count = form.byte_order, len(symbols)
    base = symbols[0][1]
    if form.values == "absolute":
        blob.add(struct.pack(f"{order}{count}Q", *(value for _, value in symbols)), 8)
        return
    if form.values == "place":
        first = 0xC000_0000_0000_0000 | blob.next
        steps = [value - (first + 4 * i) for i, (_, value) in enumerate(symbols)]
        blob.add(struct.pack(f"{order}{count}i", *steps))
        return
    if form.values == "base":
        blob.add(struct.pack(f"{order}{count}I", *(value - base for _, value in symbols)))
    else:
        steps = [value if value < (1 << 31) else base - 1 - value for _, value in symbols]
        blob.add(struct.pack(f"{order}{count}i", *steps))
    blob.add(struct.pack(order + "Q", base), 8)


def _tokens(symbols: Sequence[Symbol]) -> list[bytes]:
    used = {ord(letter) for name, _ in symbols for letter in "DT" + name}
    used |= {ord(letter) for text in SHARED for letter in text} | set(b"0123456789")
    spare = iter(SHARED * GROUP)
    return [bytes([code]) if code in used else next(spare).encode() for code in range(GROUP)]


def _compressed(text: str, tokens: list[bytes]) -> bytes:
    return _SHARED.sub(lambda found: bytes([tokens.index(found[0])]), text.encode())


def _length(length: int) -> bytes:
    return bytes([length]) if length < 0x80 else bytes([(length & 0x7F) | 0x80, length >> 7])
