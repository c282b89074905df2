"""The interface that every source of bytes offers.

An address space answers two questions: which bytes lie at one address, and
which records of equal length lie at many addresses.  Physical memory, kernel
virtual addresses and the real addresses of a guest are all such spaces, one
stacked on the other, so a walker need not know in which one it walks.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inspector.errors import MemoryNotReadable
from inspector.memory.numbers import U64, Bytes, addresses, is_address
from inspector.memory.ranges import Ranges

__all__ = [
    "ABSENT",
    "CUT_OFF",
    "LEFT_OUT",
    "NOT_THERE",
    "AddressSpace",
    "PhysicalMemory",
    "Records",
    "read_one",
    "read_singly",
    "why_missing",
]

ABSENT = "not in the target"
"""The reason for missing bytes where the target is known to have no memory."""
CUT_OFF = "not in the file, which is cut off"
LEFT_OUT = "left out of the dump"
NOT_THERE = "not in the dump"
"""The reason for missing bytes where it is not known whether the target has memory."""


class Records(NamedTuple):
    """The answer to ``read_many``.

    ``data`` has one row of bytes per address; ``present`` tells which rows
    were read.  Rows that could not be read are zero and must not be used.
    """

    data: Bytes
    present: NDArray[np.bool_]

    def words(self, byte_order: str) -> U64:
        """Return the rows as unsigned 64-bit words; ``byte_order`` is ``"<"`` or ``">"``."""
        rows = np.ascontiguousarray(self.data)
        return rows.view(np.dtype(f"{byte_order}u8")).astype(np.uint64, copy=False)


class AddressSpace(Protocol):
    """Something that bytes can be read from by address."""

    @property
    def name(self) -> str:
        """What the addresses mean: ``"physical"``, ``"kernel"`` or ``"L1"``."""

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at ``address``.

        Raises:
            MemoryNotReadable: at least one of the bytes is missing.
        """

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each address, and which records are present."""


@runtime_checkable
class PhysicalMemory(AddressSpace, Protocol):
    """The memory of a machine, or the part of it that a dump holds."""

    @property
    def ram(self) -> Ranges | None:
        """Where the machine has memory, None if that is not known."""


def read_one(space: AddressSpace, address: int, length: int) -> bytes:
    """Read one record with ``read_many``, for spaces that have no quicker way."""
    if not is_address(address):
        raise MemoryNotReadable(address, length, "it is not an address", space.name)
    records = space.read_many(addresses([address]), length)
    if not records.present[0]:
        raise MemoryNotReadable(address, length, space=space.name)
    return bytes(records.data[0])


def read_singly(space: AddressSpace, where: U64, rows: NDArray[np.int64], records: Records) -> None:
    """Fill some rows of ``records`` through ``read``, for records that cross a border inside."""
    for row in rows:
        try:
            piece = space.read(int(where[row]), records.data.shape[1])
        except MemoryNotReadable:
            continue
        records.data[row] = np.frombuffer(piece, dtype=np.uint8)
        records.present[row] = True


def why_missing(space: AddressSpace, address: int, length: int) -> str:
    """Say why ``read_many`` did not find a record: absent, or left out of a dump."""
    try:
        space.read(address, length)
    except MemoryNotReadable as error:
        return error.reason
    return ABSENT
