"""A machine behind a forwarded port, as with ``ssh -L``."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.live.tools import Lab, document, inspector


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def forwarded(port: int) -> Iterator[int]:
    """Forward a port of this host, whose process is then not QEMU."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection(("127.0.0.1", port))
                    for one, other in ((near, far), (far, near)):
                        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        threading.Thread(target=_pump, args=(one, other), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def test_a_forwarded_port(boot: Callable[..., Lab]) -> None:
    lab = boot("mixed")
    near = document(lab.run("check", "--json"))
    with forwarded(lab.machine.state.gdb_port) as port:
        far = document(inspector("check", f"gdb:127.0.0.1:{port}", *lab.files, "--json"))
    assert "(a forwarded port?)" in far["target"]["read_path"]
    assert "QEMU process" in near["target"]["read_path"]
    assert far["vms"] == near["vms"]
    lab.assert_untouched()
