"""Words and limits that the inspector and the relay share; this module loads quickly."""

from __future__ import annotations

__all__ = [
    "BROKEN",
    "CHUNK",
    "CLOSED",
    "FOREIGN",
    "GONE",
    "KEEP_STOPPED",
    "LEFT",
    "LOG",
    "OTHER",
    "PATIENCE",
    "REPLAYING",
    "RESUME",
    "SEPARATOR",
    "SILENCE",
    "SILENT",
    "STUCK",
    "UNREACHED",
    "ran",
]

LOG = "INSPECTOR_PACKET_LOG"

CHUNK = 1 << 11
"""Bytes of memory in one packet: QEMU's packets have room for 4 KiB of hexadecimal digits."""

SILENT = 10.0
"""Seconds in which a stub must answer each of the first questions."""
PATIENCE = 30.0
"""Seconds in which it must answer any other question, counted from when that was asked."""

REPLAYING = "Replaying execution"
SEPARATOR = "\0"
"""Separates the texts of one answer; no text contains it."""
RESUME, KEEP_STOPPED = "resume", "keep-stopped"

UNREACHED, SILENCE, FOREIGN = "unreached", "silence", "foreign"
BROKEN, OTHER, GONE = "broken", "other", "gone"
"""The first word of the relay's last message, when it can answer no more requests."""
CLOSED = (
    "the machine's QEMU has ended, or closed the connection; if the machine is stopped, "
    "'inspector resume gdb:HOST:PORT' lets it run"
)
LEFT, STUCK = 0, 4
"""Exit codes of the relay: the machine was left as it was found, or could not be resumed."""


def ran(status: str) -> bool:
    """Say whether a machine ran until this client's attaching stopped it.

    Args:
        status: QEMU's answer to ``info status`` after that.  Every other way
            to be stopped adds a word in brackets (``hmp_info_status``), except
            for the mode in which QEMU translates one instruction at a time.
    """
    return status.replace("(single step mode)", "").split() == ["VM", "status:", "paused"]
