"""The cache of profiles: a file that another user may have put there is never used."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inspector.errors import Hint
from inspector.image import cache
from inspector.image.cache import cached_profiles, directory, keep
from inspector.image.profile import Profile
from tests.fixtures import SMALL, pieces


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """A profile that is the only one in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = pieces(SMALL)[1]
    symbols = {**found.symbols, "__start_notes": 1, "partition_tb": 1}
    profile = replace(found, build_id="ab" * 20, symbols=symbols)
    keep(profile)
    return profile


def file_of(profile: Profile) -> Path:
    return directory() / f"{profile.build_id}.json"


def is_used(hint: str = "") -> bool:
    """Say whether a profile is found, and check that otherwise a hint of one line says why."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(cached_profiles())
    said = [str(one.message) for one in caught]
    assert all(issubclass(one.category, Hint) for one in caught)
    assert len(said) == bool(hint), said
    assert all(hint in one and "\n" not in one for one in said)
    return bool(found)


def test_what_was_kept_is_used(profile: Profile) -> None:
    assert list(cached_profiles()) == [profile]
    assert is_used()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o777])
def test_a_folder_that_others_reach(profile: Profile, mode: int) -> None:
    directory().chmod(mode)
    assert not is_used("others may read or write it")
    directory().chmod(0o700)
    assert is_used()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_belongs_to_another_user(profile: Profile) -> None:
    os.chown(file_of(profile), 12345, -1)
    assert not is_used("not private files of yours")
    os.chown(directory(), 12345, -1)
    assert not is_used("it belongs to another user")


@pytest.mark.parametrize("mode", [0o644, 0o602])
def test_a_file_that_others_reach(profile: Profile, mode: int) -> None:
    file_of(profile).chmod(mode)
    assert not is_used("not private files of yours")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "device"])
def test_what_is_no_file(profile: Profile, kind: str, tmp_path: Path) -> None:
    path = file_of(profile)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir(0o700)
    assert not is_used("not private files of yours")


def test_a_folder_that_is_a_link(profile: Profile, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    directory().rename(elsewhere)
    directory().symlink_to(elsewhere)
    assert not is_used()


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda text: text[: len(text) // 2],
    "no JSON": lambda text: b"\0" * 100,
    "deep": lambda text: b"[" * 100_000,
    "a list": lambda text: b"[]",
    "no digest": lambda text: json.dumps(
        {key: value for key, value in json.loads(text).items() if key != cache.DIGEST}
    ).encode(),
    "another place": lambda text: text.replace(b'"arch.rmap": [\n', b'"arch.rmap": [\n8, '),
    "another symbol": lambda text: text.replace(b'"0x', b'"0x1', 1),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_is_not_what_was_kept(profile: Profile, damage: str) -> None:
    path = file_of(profile)
    changed = DAMAGED[damage](path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    assert not is_used()
    keep(profile)
    assert is_used()


def test_a_file_of_a_terabyte(profile: Profile) -> None:
    os.truncate(file_of(profile), 1 << 40)
    assert not is_used()


def test_the_least_used_goes_first(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate("cdef"):
        keep(replace(profile, build_id=name * 40))
        os.utime(directory() / f"{name * 40}.json", (1000 + age, 1000 + age))
    monkeypatch.setattr(cache, "KEPT", 4)
    cache.used(replace(profile, build_id="c" * 40))
    keep(replace(profile, build_id="a" * 40))
    assert {path.name[:2] for path in directory().iterdir()} == {"aa", "ab", "cc", "ff"}


def test_what_was_not_written_to_its_end_is_removed(profile: Profile) -> None:
    left = directory() / ".inspector-0123"
    left.write_bytes(b"half")
    keep(profile)
    assert left.exists()
    os.utime(left, (0, 0))
    keep(profile)
    assert not left.exists()
