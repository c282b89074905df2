"""Addresses and bytes as arrays, and integers and headers out of bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["U64", "Bytes", "addresses", "header_of", "integer", "is_address", "ordered"]

U64 = NDArray[np.uint64]
Bytes = NDArray[np.uint8]


def integer(data: bytes, byte_order: str) -> int:
    """Return the unsigned integer that the bytes hold; ``byte_order`` is ``"<"`` or ``">"``."""
    return int.from_bytes(data, "little" if byte_order == "<" else "big")


def addresses(values: ArrayLike) -> U64:
    """Return addresses as the type of array that the readers take."""
    return np.asarray(values, dtype=np.uint64)


def is_address(value: int) -> bool:
    """Say whether a number fits in 64 bits; one that is computed from a bad word may not."""
    return 0 <= value < (1 << 64)


def ordered(layout: np.dtype[np.void], byte_order: str) -> np.dtype[np.void]:
    """Return a layout with the integers of all members in a byte order, ``"<"`` or ``">"``."""
    return layout.newbyteorder("<" if byte_order == "<" else ">")


def header_of(data: bytes, layout: np.dtype[np.void], byte_order: str) -> dict[str, int]:
    """Return the integers at the beginning of some bytes by the names that a layout gives them.

    Args:
        data: the bytes; more may follow the header.
        layout: its members, of integer types.
        byte_order: ``"<"`` or ``">"``.

    Raises:
        ValueError: the bytes end inside the header.
    """
    row = np.frombuffer(data, ordered(layout, byte_order), count=1)[0]
    return {name: int(row[name]) for name in layout.names or () if layout[name].kind in "iu"}
