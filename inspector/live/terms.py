"""What the inspector and the relay agree on; nothing that takes long to load."""

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
    "PAUSED",
    "REPLAYING",
    "RESUME",
    "SEPARATOR",
    "SILENCE",
    "SILENT",
    "STUCK",
    "UNREACHED",
]

LOG = "INSPECTOR_PACKET_LOG"

CHUNK = 1 << 11
"""Bytes of memory to a packet: QEMU's have room for 4 KiB of hexadecimal digits."""

SILENT = 10.0
"""Seconds in which a stub answers each of the first questions."""
PATIENCE = 30.0
"""Seconds in which it answers any other, counted from when that was asked."""

PAUSED = "VM status: paused"
REPLAYING = "Replaying execution"
SEPARATOR = "\0"
"""Stands between texts in one answer, and in none of them."""
RESUME, KEEP_STOPPED = "resume", "keep-stopped"

UNREACHED, SILENCE, FOREIGN = "unreached", "silence", "foreign"
BROKEN, OTHER, GONE = "broken", "other", "gone"
"""What the inspector is told when there is nobody to ask: how it begins."""
CLOSED = (
    "the machine's QEMU has ended, or closed the connection; should the machine stand still, "
    "'inspector resume gdb:HOST:PORT' lets it go on"
)
LEFT, STUCK = 0, 4
"""Exit codes of the relay: the machine was left as it was found, or could not be let go on."""
