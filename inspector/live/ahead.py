"""Begins the slow steps of attaching to a machine as soon as the machine's name is known.

While the modules of the inspector are loaded, GDB starts, and QEMU's vCPUs have
time to show that they run.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from inspector.errors import InspectorError, Stage, TargetNotSupported
from inspector.live import gdb
from inspector.live.activity import Activity
from inspector.live.processes import is_local, process_behind

__all__ = ["LIVE_PREFIX", "Behind", "address_of", "begin", "behind", "end"]

LIVE_PREFIX = "gdb:"
PORT_LIMIT = 65535
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Hosts that are not named, or listen on every address: where they are reached from here."""


class Behind(NamedTuple):
    """The process behind a port, if it is on this host, and the activity of its vCPUs."""

    process: int | None
    activity: Activity | None


_known: dict[tuple[str, int], Behind] = {}


def begin(target: str) -> None:
    """Begin the slow steps, if a word of a command line is the name of a live target."""
    if target.startswith(LIVE_PREFIX):
        gdb.start_ahead()
        with contextlib.suppress(InspectorError):
            place = address_of(target)
            _known[place] = _seen(*place)


def end() -> None:
    """End the GDB that was started and is not needed, and forget what was seen."""
    gdb.end_ahead()
    _known.clear()


def behind(host: str, port: int) -> Behind:
    """Return the process behind a port and its activity, since ``begin`` if that was called."""
    return _known.pop((host, port), None) or _seen(host, port)


def _seen(host: str, port: int) -> Behind:
    process = process_behind(port) if is_local(host) else None
    return Behind(process, Activity(process) if process is not None else None)


def address_of(target: str) -> tuple[str, int]:
    """Return the host and the port of a live target.

    The forms are those of QEMU and GDB: ``gdb:HOST:PORT``, ``gdb::PORT`` and
    ``gdb:PORT`` for this host, and ``gdb:[ADDRESS]:PORT`` for IPv6.  An
    address that a server uses to listen everywhere means this host.

    Raises:
        TargetNotSupported: the name does not have the form of one.
    """
    host, _, port = target.removeprefix(LIVE_PREFIX).rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    known = target.startswith(LIVE_PREFIX) and host != ":" and not set(host) & set("[]/")
    if not known or not port.isascii() or not port.isdecimal() or not 0 < int(port) <= PORT_LIMIT:
        raise TargetNotSupported(
            f"'{target}' is not of the form gdb:HOST:PORT (also gdb:PORT, or gdb:[ADDRESS]:PORT "
            "for IPv6), for example gdb:127.0.0.1:1234",
            Stage.PORT,
        )
    return EVERYWHERE.get(host, host), int(port)
