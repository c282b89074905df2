"""Whether two snapshots are the same, array by array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np

__all__ = ["assert_alike"]


def assert_alike(one: object, other: object, path: str = "") -> None:
    """Compare two values and everything in them; the assertion names the place that differs."""
    assert type(one) is type(other), path
    if isinstance(one, np.ndarray):
        assert np.array_equal(one, other), path  # type: ignore[arg-type]
    elif is_dataclass(one):
        for field in fields(one):
            name = field.name
            assert_alike(getattr(one, name), getattr(other, name), f"{path}.{name}")
    elif isinstance(one, tuple | list):
        assert isinstance(other, tuple | list)
        assert len(one) == len(other), path
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, f"{path}[{number}]")
    elif isinstance(one, Mapping):
        assert isinstance(other, Mapping)
        assert one.keys() == other.keys(), path
        for key, value in one.items():
            assert_alike(value, other[key], f"{path}[{key}]")
    else:
        assert one == other, path
