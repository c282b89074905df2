"""Arrays of addresses and of bytes, and integers that are stored in bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["U64", "Bytes", "addresses", "integer", "is_address"]

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
