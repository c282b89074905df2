"""Processes of this host, and the ports they listen on; this module loads quickly."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Endpoint", "holds_end", "is_local", "is_taken", "place_of", "process_behind"]

TCP_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
ESTABLISHED = "01"
LOOPBACK = ("0100007F", "00000000000000000000000001000000")
"""127.0.0.1, also when mapped into IPv6, and ::1, as the tables write them."""


class Endpoint(NamedTuple):
    """One end of a connection over TCP."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int


def place_of(host: str, port: int) -> str:
    """Return a host and a port as they are written; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(host: str) -> bool:
    """Say whether a name or an address is one of this host's own."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    with contextlib.suppress(OSError, ValueError):
        for info in socket.getaddrinfo(host, None):
            if ipaddress.ip_address(info[4][0]).is_loopback:
                return True
    return host in ("", socket.gethostname())


def is_taken(port: int) -> bool:
    """Say whether a client is connected to a loopback port of this host."""
    return any(
        row[3] == ESTABLISHED and row[1].partition(":")[0].endswith(LOOPBACK)
        for row in _sockets(port)
    )


def holds_end(pid: int, there: Endpoint, here: Endpoint) -> bool:
    """Say whether a process of this host has the far end of a connection.

    Args:
        pid: the process.
        there: the far end.
        here: the near end, which may belong to any process.
    """
    inodes = {
        f"socket:[{row[9]}]"
        for row in _sockets(there.port)
        if row[1] in _written(there) and row[2] in _written(here) and row[9] != "0"
    }
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir()) if inodes else []
        return any(os.readlink(descriptor) in inodes for descriptor in descriptors)
    except OSError:
        return False


def _written(place: Endpoint) -> tuple[str, ...]:
    """Return how the tables write a place: an IPv4 one also as it looks to a socket of IPv6."""
    packed = [place.address.packed]
    if isinstance(place.address, ipaddress.IPv4Address):
        packed.append(bytes(10) + b"\xff\xff" + packed[0])
    return tuple(
        "".join(
            f"{int.from_bytes(address[word : word + 4], sys.byteorder):08X}"
            for word in range(0, len(address), 4)
        )
        + f":{place.port:04X}"
        for address in packed
    )


def _sockets(port: int) -> Iterator[list[str]]:
    """Yield the rows of the kernel's TCP tables with this local port, as fields (proc(5)).

    The second field is the local end, the third the other one, the fourth the
    state, the tenth the inode.
    """
    for table in TCP_TABLES:
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == port:
                yield fields


def process_behind(port: int) -> int | None:
    """Return the process on this host that owns the TCP socket on a local port."""
    inodes = {f"socket:[{row[9]}]" for row in _sockets(port) if row[9] != "0"}
    folders = Path("/proc").glob("[0-9]*")
    for folder in sorted(folders, key=lambda folder: not _is_qemu(folder)) if inodes else ():
        try:
            for descriptor in (folder / "fd").iterdir():
                if os.readlink(descriptor) in inodes:
                    return int(folder.name)
        except OSError:
            continue
    return None


def _is_qemu(folder: Path) -> bool:
    """Say whether a process is called QEMU, and so most likely owns the port."""
    try:
        return "qemu" in (folder / "comm").read_text()
    except OSError:
        return False
