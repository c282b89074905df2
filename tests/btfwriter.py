"""A writer of BTF blobs, as small as the tests need."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from inspector.image import btf

__all__ = ["BtfWriter", "MemberOf"]

MemberOf = tuple[str, int, int]
"""Name, type, and offset in bits (with the width of a bit field in the top byte)."""


@dataclass
class BtfWriter:
    """Collects types; each ``add`` returns the identifier of the new type.

    ``first_id`` and ``first_string`` are the first numbers of a split blob:
    the ends of its base.
    """

    order: str = "<"
    first_id: int = 1
    first_string: int = 0
    count: int = 0
    types: bytes = b""
    strings: bytes = field(default=b"")

    def __post_init__(self) -> None:
        if not self.first_string:
            self.strings = b"\0"

    def string(self, text: str) -> int:
        """Return the offset of a string, 0 for the empty one."""
        if not text:
            return 0
        needle = b"\0" + text.encode() + b"\0"
        if needle not in b"\0" + self.strings:
            self.strings += text.encode() + b"\0"
        return self.first_string + (b"\0" + self.strings).index(needle)

    def add(
        self,
        kind: int,
        name: str,
        value: int,
        rest: Sequence[int] = (),
        vlen: int = 0,
        flag: int = 0,
    ) -> int:
        """Add a record: its kind, its size or the type it refers to, and the data that follows."""
        head = (self.string(name), (flag << 31) | (kind << 24) | vlen, value)
        self.types += struct.pack(f"{self.order}{3 + len(rest)}I", *head, *rest)
        self.count += 1
        return self.first_id + self.count - 1

    def integer(self, name: str, size: int) -> int:
        """Add an integer."""
        return self.add(btf.INT, name, size, (size * 8,))

    def pointer(self, to: int) -> int:
        """Add a pointer."""
        return self.add(btf.PTR, "", to)

    def array(self, of: int, length: int) -> int:
        """Add an array."""
        return self.add(btf.ARRAY, "", 0, (of, of, length))

    def typedef(self, name: str, of: int) -> int:
        """Add a typedef."""
        return self.add(btf.TYPEDEF, name, of)

    def struct(
        self,
        name: str,
        size: int,
        members: Sequence[MemberOf],
        *,
        kind: int = btf.STRUCT,
        flag: int = 0,
    ) -> int:
        """Add a structure or union; offsets are in bits."""
        rest = [word for text, kind_, bits in members for word in (self.string(text), kind_, bits)]
        return self.add(kind, name, size, rest, len(members), flag)

    def split(self) -> BtfWriter:
        """Return a writer of a blob on top of this one."""
        return BtfWriter(
            self.order, self.first_id + self.count, self.first_string + len(self.strings)
        )

    def data(self) -> bytes:
        """Return the blob."""
        header = struct.pack(
            self.order + "HBBIIIII",
            btf.MAGIC,
            1,
            0,
            24,
            0,
            len(self.types),
            len(self.types),
            len(self.strings),
        )
        return header + self.types + self.strings
