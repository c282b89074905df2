"""A lab with an empty cache whose only mirror is an archive of the test's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.lab import packages
from fixtures.lab.packages import apt, sources
from fixtures.lab.packages.sources import Source
from tests.lab.archive import Archive


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the lab an empty cache."""
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(packages.OFFLINE_VARIABLE, raising=False)
    monkeypatch.delenv(sources.MIRROR_VARIABLE, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def archive(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """Serve a mirror on this machine, the only one that the lab knows, security updates too."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine; Debian and its kin have it")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(apt, "RETRIES", 0)
    archive = Archive(tmp_path / "archive")
    with archive.served():
        mirror = Source(archive.uri, (), None, trusted=True)
        security = Source(archive.uri, ("bookworm-security",), None, trusted=True)
        monkeypatch.setattr(sources, "mirror", lambda: mirror)
        monkeypatch.setattr(sources, "host_sources", lambda: iter([security]))
        yield archive
