"""A miniature Debian archive with packages that are missing, cut or changed, and its server."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

ELF = b"\x7fELF" + bytes(range(64))
FAULTS = ("missing", "short", "cut", "changed")


@dataclass(frozen=True, kw_only=True)
class Deb:
    """A package in a suite's index; ``fault`` says what the pool has instead of its file."""

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    architecture: str = "ppc64el"
    fault: str = ""

    @property
    def path(self) -> str:
        """Where the index says it is."""
        version = self.version.partition(":")[2] or self.version
        return f"pool/{self.name}_{version}_{self.architecture}.deb"


def kernel(
    version: str, *, flavour: str = "powerpc64le", fault: str = "", suffix: str = "+deb13"
) -> Deb:
    """Return the package of a kernel in the form that it has up to Debian 13."""
    release = f"{version.partition('-')[0]}{suffix}-{flavour}"
    return Deb(
        name=f"linux-image-{release}",
        version=version,
        files={
            f"boot/vmlinux-{release}": ELF + version.encode(),
            f"lib/modules/{release}/kernel/arch/powerpc/kvm/kvm-hv.ko.xz": version.encode(),
            f"lib/modules/{release}/kernel/lib/one.ko.xz": b"one",
        },
        fault=fault,
    )


def split_kernel(version: str, *, fault: str = "") -> list[Deb]:
    """Return the three packages of a kernel after Debian 13; a fault is in the last one."""
    release = f"{version.partition('-')[0]}+deb14-powerpc64le"
    binary, modules = f"linux-binary-{release}", f"linux-modules-{release}"
    base = f"usr/lib/modules/{release}"
    return [
        Deb(
            name=f"linux-image-{release}",
            version=version,
            depends=f"{binary} (= {version}), {modules} (= {version}), kmod",
        ),
        Deb(name=binary, version=version, files={f"{base}/vmlinuz": ELF}),
        Deb(name=modules, version=version, files={f"{base}/kernel/x.ko": b"x"}, fault=fault),
    ]


def debug_package(version: str, *, fault: str = "") -> Deb:
    """Return the package with the debug files of a kernel."""
    release = f"{version.partition('-')[0]}+deb13-powerpc64le"
    place = f"usr/lib/debug/lib/modules/{release}/kernel/arch/powerpc/kvm"
    return Deb(
        name=f"linux-image-{release}-dbg",
        version=version,
        files={f"{place}/{name}.ko": ELF + version.encode() for name in ("kvm", "kvm-hv")},
        fault=fault,
    )


class Archive:
    """An archive in a directory, with the requests to its server and whether the server answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.uri = ""
        self.cut: set[str] = set()
        self.gone_at = ""
        """The server stops answering for good at the first request for a path with this ending."""
        self._count = 0

    @property
    def asked_debs(self) -> list[str]:
        """The packages that were requested, as NAME_VERSION, in order and each once."""
        names = (path.rpartition("/")[2] for path in self.requests if path.endswith(".deb"))
        return list(dict.fromkeys(name.rpartition("_")[0] for name in names))

    def publish(self, suite: str, *debs: Deb) -> None:
        """Write a suite's index, and its packages into the pool, with their faults."""
        records = "".join(self._record(deb) for deb in debs).encode()
        directory = self.folder / "dists" / suite
        architectures = sorted({"ppc64el", *(deb.architecture for deb in debs)})
        digest = hashlib.sha256(records).hexdigest()
        sums = ""
        for architecture in architectures:
            index = f"main/binary-{architecture}/Packages"
            (directory / index).parent.mkdir(parents=True, exist_ok=True)
            (directory / index).write_bytes(records)
            sums += f" {digest} {len(records)} {index}\n"
        (directory / "Release").write_text(
            f"Suite: {suite}\nCodename: {suite}\nArchitectures: {' '.join(architectures)}\n"
            f"Components: main\nDate: Fri, 27 Nov 2026 00:00:00 UTC\nSHA256:\n{sums}"
        )

    def _record(self, deb: Deb) -> str:
        data = self._built(deb)
        path = self.folder / deb.path
        path.unlink(missing_ok=True)
        self.cut.discard(deb.path)
        if deb.fault == "short":
            path.write_bytes(data[: len(data) // 2])
        elif deb.fault == "changed":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif deb.fault != "missing":
            path.write_bytes(data)
        if deb.fault == "cut":
            self.cut.add(deb.path)
        depends = f"Depends: {deb.depends}\n" if deb.depends else ""
        return (
            f"Package: {deb.name}\nVersion: {deb.version}\nArchitecture: {deb.architecture}\n"
            f"Maintainer: nobody\nDescription: a test\n{depends}Filename: {deb.path}\n"
            f"Size: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n\n"
        )

    def _built(self, deb: Deb) -> bytes:
        self._count += 1
        tree = self.folder / "build" / str(self._count)
        for name, data in deb.files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(data)
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {deb.name}\nVersion: {deb.version}\nArchitecture: {deb.architecture}\n"
            "Maintainer: nobody\nDescription: a test\n"
        )
        path = self.folder / deb.path
        path.parent.mkdir(exist_ok=True)
        subprocess.run(
            ["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, path],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return path.read_bytes()

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve the archive on a port of this machine while the context lasts."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.uri = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        archive = self

        class Handler(BaseHTTPRequestHandler):
            """Serves the files of the archive, in the plainest way."""

            def do_GET(self) -> None:
                path = unquote(self.path).lstrip("/")
                archive.requests.append(path)
                if archive.gone_at and path.endswith(archive.gone_at):
                    self.server.server_close()
                    self.close_connection = True
                    return
                try:
                    data = (archive.folder / path).read_bytes()
                except OSError:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if path in archive.cut:
                    data = data[: len(data) // 2]
                    self.close_connection = True
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler
