"""The kernel's own symbol table, as it lies compressed in its read-only data.

A name is a sequence of bytes, and each byte is the number of a token.  The
256 tokens and the index of their offsets are unmistakable, so the search
looks for them.  Everything else lies around them in an order that changed
over time (scripts/kallsyms.c).  The decoder tries the orders and takes the
one that fits; it does not look at the kernel's version.

===========  ==================================================================
to 6.3       addresses, number, names, markers, (order by name), tokens, index
from 6.4     number, names, markers, tokens, index, addresses, order by name
addresses    8 bytes each; from 4.6 on 4 bytes, relative to a base, positive
             ones absolute in one variant; in the newest kernels relative to
             the address of the entry itself
names        a length, then that many bytes; lengths over 127 take two bytes
             from 6.1 on
markers      offset of every 256th name
===========  ==================================================================
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.errors import BadData
from inspector.memory.interface import AddressSpace
from inspector.memory.numbers import U64, Bytes, addresses
from inspector.regions import LINEAR_MAP, LINEAR_SIZE

__all__ = ["CHUNK", "SYMBOLS_BELOW", "Kallsyms", "Tokens", "Window", "decode", "token_tables"]

CHUNK = 1 << 20
PIECE = 1 << 12
DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
"""The tokens "0" to "9".  A character that occurs in names is a token of its own."""
FIRST_DIGIT = ord("0")
TOKENS = 256
TOKENS_LIMIT = 1 << 13
GROUP = 256
"""Number of names from one marker to the next."""
NAME_LIMIT = 514
"""Most bytes of a compressed name, including its length."""
MARKER_LIMITS = (2 * GROUP, NAME_LIMIT * GROUP)
FEWEST_MARKERS = 2
MARKERS_LIMIT = 1 << 13
MARKER_WINDOWS = (1 << 20, 1 << 22)
"""Bytes before the tokens to search for the markers: the order by name can lie between."""
NAMES_LIMIT = 1 << 26
PLACES_LIMIT = 1 << 16
"""Number of places for the names that are tried; a real kernel has them at one of the first."""
ALIGNMENTS = (4, 8)
PADDING = 8
TEXT_KINDS = tuple("tTwW")
SYMBOLS_BELOW = 16
"""Number of symbol addresses, going down, that are searched for a symbol of the text."""

# A random weight for each character: names are compared by the sums of their weights first.
_WEIGHTS = np.random.default_rng(256).integers(0, 1 << 64, size=256, dtype=np.uint64)


class Window:
    """Physical memory, read in chunks of ``CHUNK`` bytes, each of them once.

    Pages that cannot be read are zeros; a table with such a page is rejected.
    """

    def __init__(self, memory: AddressSpace) -> None:
        self.memory = memory
        self._chunks: dict[int, bytes] = {}

    def chunk(self, index: int) -> bytes:
        """Return the chunk that begins at ``index * CHUNK``."""
        if index not in self._chunks:
            # Page by page, so that a missing page does not lose the whole chunk.
            where = addresses(index * CHUNK) + np.arange(CHUNK // PIECE, dtype=np.uint64) * (
                np.uint64(PIECE)
            )
            self._chunks[index] = self.memory.read_many(where, PIECE).data.tobytes()
        return self._chunks[index]

    def held(self, index: int) -> bytes:
        """Return a chunk that was read before, or no bytes if it was not."""
        return self._chunks.get(index, b"")

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address; below 0 they are zeros."""
        if address < 0:
            return bytes(length)
        first, last = address // CHUNK, (address + length - 1) // CHUNK
        joined = b"".join(self.chunk(index) for index in range(first, last + 1))
        begin = address - first * CHUNK
        return joined[begin : begin + length]


class Tokens(NamedTuple):
    """A token table: its physical address, that of its index's end, and the tokens."""

    place: int
    end: int
    byte_order: str
    tokens: list[bytes]


class Kallsyms:
    """A decoded symbol table.

    ``place`` is the physical address of its tokens, ``byte_order`` that of
    the kernel it belongs to.
    """

    def __init__(self, tokens: Tokens, names: Bytes, rows: _Rows, values: U64) -> None:
        self.place, self.byte_order = tokens.place, tokens.byte_order
        self._tokens = tokens.tokens
        self._names, self._rows, self._values = names, rows, values

    def __len__(self) -> int:
        return self._values.size

    @property
    def first(self) -> int:
        """The lowest address of a symbol that is a kernel address."""
        return int(self._values[_linear(self._values)].min())

    @property
    def last(self) -> int:
        """The highest address of a symbol."""
        return int(self._values.max())

    def find(self, wanted: Iterable[str]) -> dict[str, list[int]]:
        """Return the distinct addresses of the symbols of these names.

        Names are first compared by the sums of their weights; only a name
        whose sum is that of a wanted name is decoded.
        """
        sought = {name.encode("ascii") for name in wanted}
        sums = addresses([_sum(name) for name in sought])
        per_token = addresses([_sum(token) for token in self._tokens])
        kind = addresses([_sum(token[:1]) for token in self._tokens])
        # total[i] is the sum of the first i bytes of all names, so the sum of any name is one
        # subtraction.  The first character of a name is its kind, which no wanted name has.
        total = np.concatenate((addresses([0]), np.cumsum(per_token[self._names])))
        begin, end = self._rows.begin, self._rows.begin + self._rows.size
        first = kind[self._names[np.minimum(begin, self._names.size - 1)]]
        found: dict[str, list[int]] = {}
        for row in np.flatnonzero(np.isin(total[end] - total[begin] - first, sums, kind="sort")):
            name = self._spelt(int(row))[1:]
            if name in sought:
                values = found.setdefault(name.decode("ascii"), [])
                if int(self._values[row]) not in values:
                    values.append(int(self._values[row]))
        return found

    def before(self, address: int) -> tuple[str, int] | None:
        """Return the last symbol of the kernel's text at or below an address, and its address.

        Text symbols are those of kind t or w, in either case; an address
        after the last symbol of all belongs to none.
        """
        if not self.first <= address <= self.last:
            return None
        below = np.flatnonzero((self._values <= np.uint64(address)) & _linear(self._values))
        for value in np.unique(self._values[below])[::-1][:SYMBOLS_BELOW].tolist():
            rows = below[self._values[below] == np.uint64(value)]
            names = [self._spelt(int(row)).decode("ascii", "replace") for row in rows]
            text = [name[1:] for name in names if name[:1] in TEXT_KINDS]
            if text:
                return text[-1], value
        return None

    def _spelt(self, row: int) -> bytes:
        """Return the kind and the name of a symbol."""
        begin = int(self._rows.begin[row])
        codes = self._names[begin : begin + int(self._rows.size[row])]
        return b"".join(self._tokens[code] for code in codes)


class _Rows(NamedTuple):
    """One row per name: the offset of its first token in the names' bytes, and their number."""

    begin: NDArray[np.int64]
    size: NDArray[np.int64]


def _sum(text: bytes) -> int:
    return int(_WEIGHTS[np.frombuffer(text, dtype=np.uint8)].sum(dtype=np.uint64))


def token_tables(window: Window, chunks: Iterable[int]) -> Iterator[Tokens]:
    """Yield every token table whose digits lie in the given chunks, chunk by chunk."""
    overlap = len(DIGITS) - 1
    for index in chunks:
        data = window.chunk(index)
        # The digits may cross the border to a chunk that was read before.
        before, after = window.held(index - 1)[-overlap:], window.held(index + 1)[:overlap]
        joined = before + data + after
        found = joined.find(DIGITS)
        while found >= 0:
            tokens = _tokens(window, index * CHUNK - len(before) + found)
            if tokens is not None:
                yield tokens
            found = joined.find(DIGITS, found + 1)


def decode(window: Window, tokens: Tokens) -> Kallsyms:
    """Decode the symbol table around some tokens.

    Raises:
        BadData: the table is damaged, or not of a known form.
    """
    for at, markers, start, number_at, count in itertools.islice(
        _places(window, tokens), PLACES_LIMIT
    ):
        second = int(markers[1])
        if not _first_group_fits(window.read(start, min(second + 1, at - start)), second):
            continue
        names = np.frombuffer(window.read(start, at - start), dtype=np.uint8)
        rows = _rows(names, markers, count)
        if rows is not None:
            values = _values(window, tokens, number_at, count)
            return Kallsyms(tokens, names, rows, values)
    raise BadData(
        f"the kernel symbol names before the tokens at physical {tokens.place:#x} do not fit them"
    )


def _places(
    window: Window, tokens: Tokens
) -> Iterator[tuple[int, NDArray[np.int64], int, int, int]]:
    """Yield the markers' address, the markers, the names' address, and the number's, and that."""
    for size in MARKER_WINDOWS:
        for at, markers in _marker_runs(window, tokens, size):
            for start, number_at, count in _names_before(window, tokens, at, markers):
                yield at, markers, start, number_at, count


def _first_group_fits(names: bytes, marker: int) -> bool:
    """Say whether the lengths lead from the first name to the second marker.

    Most candidates fail here, before all their names are read.
    """
    place = 0
    last = min(marker, len(names)) - 1
    for _ in range(GROUP):
        if place >= last:
            return False
        size = names[place]
        if size & 0x80:
            # A length of two bytes: seven bits here, the higher ones in the next byte.
            place += 1
            size = (size & 0x7F) | (names[place] << 7)
        if not size:
            return False
        place += 1 + size
    return place == marker


def _tokens(window: Window, digits: int) -> Tokens | None:
    """Return the tokens around those of the digits, None if no index after them fits them."""
    begin = max(0, digits - TOKENS_LIMIT)
    data = window.read(begin, digits - begin + TOKENS_LIMIT)
    here = digits - begin
    # The tokens from "0" to the last one are skipped, to find the index after them.
    end = here
    for _ in range(TOKENS - FIRST_DIGIT):
        end = data.find(b"\0", end) + 1
        if not end:
            break
    for alignment in (2, *ALIGNMENTS) if end else ():
        place = begin + end + -(begin + end) % alignment
        raw = data[place - begin : place - begin + 2 * TOKENS]
        for order in "<>" if len(raw) == 2 * TOKENS else "":
            index = np.frombuffer(raw, dtype=order + "u2").astype(np.int64)
            start = here - int(index[FIRST_DIGIT])
            tokens = data[max(0, start) : end].split(b"\0")[:-1]
            sizes = np.array([len(token) + 1 for token in tokens], dtype=np.int64)
            if len(tokens) == TOKENS and np.array_equal(np.cumsum(sizes) - sizes, index):
                return Tokens(begin + start, place + 2 * TOKENS, order, tokens)
    return None


def _marker_runs(
    window: Window, tokens: Tokens, size: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield every run of words before the tokens that grows from 0 as markers do.

    Each comes with its physical address; the run closest to the tokens is first.
    """
    begin = max(0, tokens.place - size)
    begin += (tokens.place - begin) % 4
    raw = window.read(begin, (tokens.place - begin) // 4 * 4)
    words = np.frombuffer(raw, dtype=tokens.byte_order + "u4").astype(np.int64)
    # A run ends at the first step that no group of names can have.
    step = np.diff(words)
    grows = (step >= MARKER_LIMITS[0]) & (step <= MARKER_LIMITS[1])
    stops = np.append(np.flatnonzero(~grows), words.size - 1)
    for first in np.flatnonzero((words[:-1] == 0) & grows)[::-1]:
        last = int(stops[np.searchsorted(stops, first)])
        markers = words[first : last + 1]
        if FEWEST_MARKERS <= markers.size <= MARKERS_LIMIT and markers[-1] < NAMES_LIMIT:
            yield begin + 4 * int(first), markers


def _names_before(
    window: Window, tokens: Tokens, at: int, markers: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """Yield addresses at which the names may begin, with the address and value of their number."""
    # The names end at the markers, and the last group of them has a bounded length.  So they
    # begin within a known range; their number lies before them, and there may be padding.
    last = at - int(markers[-1])
    begin = max(0, last - GROUP * NAME_LIMIT)
    begin += (at - begin) % 4
    raw = window.read(begin, (last - begin) // 4 * 4)
    words = np.frombuffer(raw, dtype=tokens.byte_order + "u4").astype(np.int64)
    fits = (words > (markers.size - 1) * GROUP) & (words <= markers.size * GROUP)
    for index in np.flatnonzero(fits)[::-1]:
        place = begin + 4 * int(index)
        for alignment in ALIGNMENTS:
            yield place + alignment, place, int(words[index])


def _rows(names: Bytes, markers: NDArray[np.int64], count: int) -> _Rows | None:
    """Follow the lengths from every marker at once; None if they miss the next marker."""
    if not names.size or markers[-1] >= names.size:
        return None
    # A column is a group, and row i has the i-th name of every group.  The last group may have
    # fewer names; what its column holds after them is cut off at the end.
    begin = np.zeros((GROUP, markers.size), dtype=np.int64)
    size = np.zeros((GROUP, markers.size), dtype=np.int64)
    position = markers.copy()
    last = names.size - 1
    in_last = count - (markers.size - 1) * GROUP
    end = 0
    for i in range(GROUP):
        if i == in_last:
            end = int(position[-1])
        # A length over 127 has two bytes: seven bits in the first, the higher ones in the second.
        low = names[np.minimum(position, last)].astype(np.int64)
        high = names[np.minimum(position + 1, last)].astype(np.int64)
        big = low >> 7
        size[i] = (low & 0x7F) | ((high << 7) * big)
        begin[i] = position + 1 + big
        position = begin[i] + size[i]
    if in_last == GROUP:
        end = int(position[-1])
    if not np.array_equal(position[:-1], markers[1:]) or not 0 <= names.size - end < PADDING:
        return None
    rows = _Rows(begin.T.reshape(-1)[:count], size.T.reshape(-1)[:count])
    return rows if rows.size.all() else None


def _values(window: Window, tokens: Tokens, number_at: int, count: int) -> U64:
    """Return the addresses, in the first form that gives sorted kernel addresses.

    Raises:
        BadData: no form does.
    """
    order = tokens.byte_order
    base_before = number_at - 8
    small = 4 * count
    for place in sorted({tokens.end + -tokens.end % alignment for alignment in ALIGNMENTS}):
        after = place + small
        # From 6.4 on the offsets come after the index, and the base after them.
        yielded = _relative(window, order, place, after + -after % 8, count)
        if yielded is not None:
            return yielded
        # From 7.0 on there is no base: an offset is relative to its own address.
        here = addresses(LINEAR_MAP | place) + np.arange(count, dtype=np.uint64) * (np.uint64(4))
        offsets = np.frombuffer(window.read(place, small), dtype=order + "i4")
        steps = offsets.astype(np.int64).view(np.uint64)
        values = here + steps
        # The offsets lie after the first symbol of the kernel and before the last one.
        if offsets[0] < 0 < offsets[-1] and _plausible(values):
            return values
    # Up to 6.3 the base lies right before the number, and the offsets before the base.
    before = _relative(window, order, base_before - small - small % 8, base_before, count)
    if before is not None:
        return before
    # Absolute addresses, before the number or after the index.
    for place in (number_at - 8 * count, tokens.end + -tokens.end % 8):
        absolute = np.frombuffer(window.read(place, 8 * count), dtype=order + "u8")
        if _plausible(absolute.astype(np.uint64)):
            return absolute.astype(np.uint64)
    raise BadData(
        f"the kernel symbols around physical {tokens.place:#x} have no addresses that make sense"
    )


def _relative(window: Window, order: str, place: int, base_at: int, count: int) -> U64 | None:
    """Return addresses that are stored as offsets from a base, None if these words are not."""
    base = np.frombuffer(window.read(base_at, 8), dtype=order + "u8").astype(np.uint64)
    if not _linear(base).all():
        return None
    offsets = np.frombuffer(window.read(place, 4 * count), dtype=order + "u4")
    values = base + offsets.astype(np.uint64)
    if offsets[0] == 0 and _plausible(values):
        return values
    # With CONFIG_KALLSYMS_ABSOLUTE_PERCPU only negative offsets are relative, to one below the
    # base, and positive ones are absolute (kallsyms_sym_address).
    signed = offsets.view(order + "i4").astype(np.int64)
    relative = base - np.uint64(1) - signed.view(np.uint64)
    counted = relative[signed < 0]
    if counted.size and counted[0] == base[0] and _plausible(counted):
        return np.where(signed < 0, relative, offsets.astype(np.uint64))
    return None


def _linear(values: U64) -> NDArray[np.bool_]:
    # Unsigned: an address below the linear map wraps to a large number.
    inside: NDArray[np.bool_] = values - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)
    return inside


def _plausible(values: U64) -> bool:
    return bool(values.size and np.all(values[1:] >= values[:-1]) and _linear(values[-1:]).all())
