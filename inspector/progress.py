"""What the tool is doing, for the user who waits."""

from __future__ import annotations

import enum
from collections.abc import Callable

__all__ = ["Doing", "Progress", "untold"]


class Doing(enum.Enum):
    """What an inspection is doing; the value is the text for users."""

    ATTACHING = "attaching"
    OPENING = "opening the file"
    DESCRIBING = "finding the kernel"
    READING = "reading"
    DECODING = "decoding"
    FOLLOWING = "following calls"
    REWINDING = "taking the replay back to its beginning"
    REPLAYING = "replaying"
    RETURNING = "running the replay on to where it was"
    NAMING = "naming functions"
    LOOKING_UP = "looking up"


Progress = Callable[[Doing, str], None]
"""Called when an activity begins and as it proceeds; the text says how far it is, or is empty."""


def untold(doing: Doing, detail: str) -> None:
    """Report no progress."""
