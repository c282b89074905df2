"""The errors that a user can see.

Every message says what was tried, at which address if there is one, and
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
"""Characters of a target's answer that a message repeats."""


def printable(text: str) -> str:
    """Return text from a target with its control characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(said: str | bytes, limit: int = SHOWN) -> str:
    """Return a target's answer as a message repeats it: on one line, and cut.

    Args:
        said: the answer; bytes are decoded as Latin-1.
        limit: how many characters of it to keep, counted before escaping.
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
    """A line that a user should know, about something that prevents nothing."""


class InspectorError(Exception):
    """Base class of everything that this package raises for bad input."""


class MemoryNotReadable(InspectorError):  # noqa: N818
    """The requested bytes are not in the target.

    ``address`` is in the address space named by ``space`` (``"physical"``,
    ``"kernel"``, ``"L1"``), ``length`` is in bytes, and ``reason`` says whether
    the memory does not exist or a dump left it out.
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

    Unlike after ``TargetNotSupported``, another attempt may succeed.
    """


class TargetNotSupported(InspectorError):  # noqa: N818
    """The target was understood well enough to say that it cannot be inspected.

    ``step`` is the step that failed, if it is known; the steps before it
    succeeded.
    """

    def __init__(self, message: str, step: Stage | None = None) -> None:
        self.step = step
        super().__init__(message)
