"""A reader of BTF, the kernel's own type information.

It answers one question: at which offset a structure has a member, and how
large the member is.  Format: Documentation/bpf/btf.rst and
include/uapi/linux/btf.h.  A module's BTF is "split": its type identifiers
and string offsets continue after the last ones of vmlinux.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inspector.errors import BadData
from inspector.memory.numbers import header_of, integer

__all__ = ["Btf", "Member"]

MAGIC = 0xEB9F
HEADER = np.dtype(
    [
        ("magic", "u2"),
        ("version", "u1"),
        ("flags", "u1"),
        ("hdr_len", "u4"),
        ("type_off", "u4"),
        ("type_len", "u4"),
        ("str_off", "u4"),
        ("str_len", "u4"),
    ]
)
"""``struct btf_header``; offsets count from the header's end."""
INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC_PROTO, VAR = 8, 9, 10, 11, 13, 14
DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 15, 16, 17, 18, 19
_QUALIFIERS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)
# 32-bit words of a record after the three of its head: a fixed number, and so many per item.
_FIXED_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_WORDS_PER_ITEM = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
_NESTING_LIMIT = 32


class Member(NamedTuple):
    """A member of a structure: offset and size in bytes, and its BTF type."""

    offset: int
    size: int
    type_id: int


class Btf:
    """One BTF blob, and its base blob if it is split.

    Args:
        data: the contents of a ``.BTF`` section.
        base: the BTF of vmlinux, for a module's.

    Raises:
        BadData: the blob is not BTF or is damaged.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        self._base = base
        self._order = _byte_order(data)
        try:
            given = header_of(data, HEADER, self._order)
        except ValueError as error:
            raise BadData("the BTF header is truncated") from error
        first_type = given["hdr_len"] + given["type_off"]
        first_string = given["hdr_len"] + given["str_off"]
        types = data[first_type : first_type + given["type_len"]]
        self._strings = data[first_string : first_string + given["str_len"]]
        whole = len(types) == given["type_len"] and len(self._strings) == given["str_len"]
        if not whole or len(types) % 4:
            raise BadData("the BTF is truncated: a section ends after the end of the data")
        self._first_string = base.string_end if base else 0
        self._first_id = base.type_end if base else 1
        self._words = np.frombuffer(types, dtype=self._order + "u4")
        self._position = np.array(self._record_positions(), dtype=np.int64)

    @property
    def string_end(self) -> int:
        """The first string offset after this blob's own."""
        return self._first_string + len(self._strings)

    @property
    def type_end(self) -> int:
        """The first type identifier after this blob's own."""
        return self._first_id + len(self._position)

    def _record_positions(self) -> list[int]:
        words = self._words
        if len(words) < 3:
            return []
        info = words[1:]
        kind = (info >> 24) & 0x1F
        count = (info & 0xFFFF).astype(np.int64)
        fixed = np.zeros(32, dtype=np.int64)
        per_item = np.zeros(32, dtype=np.int64)
        for key, value in _FIXED_WORDS.items():
            fixed[key] = value
        for key, value in _WORDS_PER_ITEM.items():
            per_item[key] = value
        # Where a record begins follows from the length of the one before it.  following[i] is
        # the end of a record that begins at word i; it is computed for every word at once, and
        # the loop only follows the words at which records really begin.
        following = np.arange(3, len(words) + 2) + fixed[kind] + per_item[kind] * count
        chain = following.tolist()
        end = len(words)
        positions = []
        position = 0
        while position + 3 <= end:
            positions.append(position)
            position = chain[position]
        if position != end:
            raise BadData("the BTF type section is damaged: its last record ends elsewhere")
        if positions and int(kind[np.array(positions)].max()) > ENUM64:
            raise BadData("the BTF holds a type of a kind that is not known")
        return positions

    def _string(self, offset: int) -> str:
        if offset < self._first_string:
            assert self._base is not None
            return self._base._string(offset)
        begin = offset - self._first_string
        end = self._strings.find(b"\0", begin)
        return self._strings[begin : max(begin, end)].decode("ascii", "replace")

    def _record(self, type_id: int) -> tuple[Btf, int]:
        if type_id < self._first_id and self._base is not None:
            return self._base._record(type_id)
        index = type_id - self._first_id
        if not 0 <= index < len(self._position):
            raise BadData(f"BTF type {type_id} does not exist")
        return self, int(self._position[index])

    def _head(self, type_id: int) -> tuple[int, int, int, Btf, int]:
        """Return kind, count, size-or-type, the owning blob and the record's word index."""
        owner, position = self._record(type_id)
        info = int(owner._words[position + 1])
        return (info >> 24) & 0x1F, info & 0xFFFF, int(owner._words[position + 2]), owner, position

    def _resolve(self, type_id: int) -> int:
        for _ in range(_NESTING_LIMIT):
            kind, _count, target, _owner, _position = self._head(type_id)
            if kind not in _QUALIFIERS:
                return type_id
            type_id = target
        raise BadData(f"BTF type {type_id} is a typedef of itself")

    def size_of(self, type_id: int, depth: int = 0) -> int:
        """Return the size in bytes of a type."""
        type_id = self._resolve(type_id)
        kind, _count, value, owner, position = self._head(type_id)
        if kind == PTR:
            return 8
        if kind == ARRAY:
            if depth > _NESTING_LIMIT:
                raise BadData(f"BTF array {type_id} is nested in itself")
            element, _index, length = (int(w) for w in owner._words[position + 3 : position + 6])
            return length * self.size_of(element, depth + 1)
        return value if kind in (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT) else 0

    def find_struct(self, name: str) -> int | None:
        """Return the type of a structure defined in this blob or, failing that, in its base."""
        wanted = self._name_offsets(name)
        if len(self._position) and wanted:
            kinds = (self._words[self._position + 1] >> 24) & 0x1F
            names = self._words[self._position]
            hits = np.flatnonzero(np.isin(names, wanted) & np.isin(kinds, (STRUCT, UNION)))
            if hits.size:
                return self._first_id + int(hits[0])
        return self._base.find_struct(name) if self._base else None

    def _name_offsets(self, name: str) -> list[int]:
        # A split blob may name a type by a string of its base.
        needle = b"\0" + name.encode("ascii") + b"\0"
        blob: Btf | None = self
        offsets = []
        while blob is not None:
            found = blob._strings.find(needle)
            if found >= 0:
                offsets.append(blob._first_string + found + 1)
            blob = blob._base
        return offsets

    def member(self, type_id: int, path: str) -> Member | None:
        """Find a member by a dotted path; members of anonymous members count as direct ones."""
        current = Member(0, self.size_of(type_id), type_id)
        for name in path.split("."):
            found = self._direct_member(current.type_id, name, set())
            if found is None:
                return None
            current = Member(current.offset + found.offset, found.size, found.type_id)
        return current

    def _direct_member(self, type_id: int, name: str, seen: set[int]) -> Member | None:
        type_id = self._resolve(type_id)
        kind, count, _size, owner, position = self._head(type_id)
        if kind not in (STRUCT, UNION) or type_id in seen:
            return None
        seen.add(type_id)
        bitfields = int(owner._words[position + 1]) >> 31
        items = owner._words[position + 3 : position + 3 + 3 * count].reshape(-1, 3).tolist()
        for name_offset, member_type, bits in items:
            # With kind_flag set, the highest byte is the width of a bit field.
            offset = (bits & 0xFFFFFF if bitfields else bits) // 8
            member_name = owner._string(name_offset) if name_offset else ""
            if member_name == name:
                return Member(offset, self.size_of(member_type), member_type)
            if not member_name:
                inner = self._direct_member(member_type, name, seen)
                if inner is not None:
                    return Member(offset + inner.offset, inner.size, inner.type_id)
        return None


def _byte_order(data: bytes) -> str:
    for order in "<>":
        if len(data) >= 8 and integer(data[:2], order) == MAGIC:
            return order
    raise BadData("the data does not begin with the BTF magic number")
