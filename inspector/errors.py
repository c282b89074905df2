"""The errors a user can meet.

Every message says what was tried, at which address where there is one, and
what to do next.  Nothing else is raised across a package boundary for bad
input, so the command line can print ``str(error)`` and stop.
"""

from __future__ import annotations

import enum

__all__ = [
    "BadData",
    "Hint",
    "InspectorError",
    "MemoryNotReadable",
    "Stage",
    "TargetLost",
    "TargetNotSupported",
    "printable",
    "shown",
]

SHOWN = 120
"""Characters of what a target says that a message repeats."""


def printable(text: str) -> str:
    """Return text from a target with control characters shown, not sent."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(said: str | bytes, limit: int = SHOWN) -> str:
    """Return what a target has said as a message repeats it: on one line, and cut.

    Args:
        said: the text; bytes are taken for Latin-1.
        limit: how many characters of it, before those that cannot be printed are written out.
    """
    text = said[: limit + 1] if isinstance(said, str) else said[: limit + 1].decode("latin-1")
    return printable(text[:limit]) + ("..." if len(text) > limit else "")


class Stage(enum.Enum):
    """The steps from a target to its VMs, in the order they are taken."""

    GDB = "GDB"
    PORT = "port"
    QEMU = "QEMU"
    FORMAT = "format"
    POWER = "architecture"
    KERNEL = "host kernel"
    RADIX = "MMU"
    TYPES = "description"
    KVM = "KVM-HV"
    STATE = "state"


class Hint(UserWarning):
    """Something that a user should know and that stands in the way of nothing; one line."""


class InspectorError(Exception):
    """Base of everything this package raises for bad input."""


class MemoryNotReadable(InspectorError):  # noqa: N818
    """Bytes that were asked for are not in the target.

    ``address`` is in the address space named by ``space`` (``"physical"``,
    ``"kernel"``, ``"L1"``), ``length`` is in bytes, and ``reason`` tells
    memory that is not there from memory that a dump left out.
    """

    def __init__(
        self, address: int, length: int, reason: str = "not in the target", space: str = "physical"
    ) -> None:
        self.address = address
        self.length = length
        self.reason = reason
        self.space = space
        super().__init__(f"cannot read {length} bytes at {space} address {address:#x}: {reason}")


class BadData(InspectorError):  # noqa: N818
    """Bytes were read but are not what the format or the kernel would write."""


class TargetLost(InspectorError):  # noqa: N818
    """A target that could be inspected is gone, silent, or was busy at every attempt.

    Unlike ``TargetNotSupported`` it may be worth to try again.
    """


class TargetNotSupported(InspectorError):  # noqa: N818
    """The target was understood well enough to say that it cannot be inspected.

    ``step`` is the step that could not be taken, where it is known; those
    before it were.
    """

    def __init__(self, message: str, step: Stage | None = None) -> None:
        self.step = step
        super().__init__(message)
