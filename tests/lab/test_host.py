"""The host's own tools, from an archive without some files it lists; nothing is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.lab import packages
from fixtures.lab.packages import LabError, MirrorError, host, sources
from fixtures.lab.packages.apt import Apt, host_architecture
from fixtures.lab.packages.sources import Source
from tests.lab.archive import Archive, Deb

Installed = list[tuple[tuple[str, ...], list[str]]]


@pytest.fixture
def installed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Be root on a bare Debian 12, and note what apt would install, and from which files."""
    found: Installed = []
    run = Apt.run

    def pretend(apt: Apt, *arguments: str, doing: str, cwd: Path | None = None) -> str:
        if "install" not in arguments or {"--print-uris", "--download-only"} & set(arguments):
            return run(apt, *arguments, doing=doing, cwd=cwd)
        folder = Path(arguments[1].partition("=")[2])
        files = sorted(path.name.rpartition("_")[0] for path in folder.glob("*.deb"))
        found.append((arguments[4:], files))
        return ""

    own = Source(archive.uri, ("bookworm", "bookworm-updates", "other"), None, trusted=True)
    monkeypatch.setattr(Apt, "run", pretend)
    monkeypatch.setattr(sources, "host_sources", lambda: iter([own]))
    monkeypatch.setattr(sources, "codename", lambda: "bookworm")
    monkeypatch.setattr(sources, "is_debian", lambda: True)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(host, "HOST_PACKAGES", ("lab-tool",))
    monkeypatch.setattr(host, "HOST_QEMU_PACKAGES", ("lab-qemu",))
    monkeypatch.setattr(
        host, "qemu_major", lambda: 10 if any("lab-qemu" in n for n, _ in found) else 7
    )
    return found


def deb(name: str, version: str, fault: str = "") -> Deb:
    return Deb(name=name, version=version, fault=fault, architecture=host_architecture())


@pytest.mark.slow
def test_older_versions_and_backports(
    archive: Archive, installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    # the suite of updates has no index
    archive.publish(
        "bookworm",
        *(deb("lab-tool", "1.0-1"), deb("lab-tool", "1.1-1", "missing")),
        deb("lab-qemu", "7.2-1"),
    )
    archive.publish(
        "bookworm-backports", deb("lab-qemu", "10.0-1"), deb("lab-qemu", "10.1-1", "short")
    )
    packages.install_host()
    assert installed == [
        (("lab-tool",), ["lab-tool_1.0-1"]),
        (("lab-qemu",), ["lab-qemu_10.0-1"]),
    ]
    said = capsys.readouterr().err
    assert "lab-tool: using 1.0-1 from bookworm; the mirror does not give" in said
    assert "bookworm-updates: no index: " in said
    assert "lab-qemu: using 10.0-1 from bookworm-backports; " in said


@pytest.mark.slow
def test_a_qemu_that_is_too_old_is_not_installed(archive: Archive, installed: Installed) -> None:
    archive.publish("bookworm", deb("lab-tool", "1.0-1"), deb("lab-qemu", "7.2-1"))
    archive.publish("bookworm-backports", deb("lab-qemu", "10.0-1", "missing"))
    with pytest.raises(MirrorError, match=r"lab-qemu 10\.0-1 \(404 .*7\.2-1 is older than 10"):
        packages.install_host()
    assert [names for names, _ in installed] == [("lab-tool",)]


@pytest.mark.slow
def test_backports_where_the_hosts_own_qemu_cannot_be_had(
    archive: Archive, installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.publish("bookworm", deb("lab-tool", "1.0-1"), deb("lab-qemu", "10.0-1", "changed"))
    archive.publish("bookworm-backports", deb("lab-qemu", "11.1-1"))
    packages.install_host()
    assert installed[1] == (("lab-qemu",), ["lab-qemu_11.1-1"])
    assert "lab-qemu 10.0-1 (Hash Sum mismatch)" in capsys.readouterr().err


def test_offline(archive: Archive, installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "1")
    with pytest.raises(LabError, match="offline: this host has no lab-tool, lab-qemu"):
        packages.install_host()
    assert (installed, archive.requests) == ([], [])
