"""Programs with their dependencies, from a mirror that does not give all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixtures.lab import packages
from fixtures.lab.packages import LabError, MirrorError, search
from fixtures.lab.packages.suites import Release, UserSpace
from tests.lab.archive import Archive, Deb

PROGRAM = UserSpace(
    "program", (Release("trixie"), Release("sid", ("sid-updates",), why="a newer version"))
)


def program(version: str, *, fault: str = "", depends: str = "library") -> Deb:
    files = {"usr/bin/program": version.encode(), "lib64/loader": b"loader"}
    return Deb(name="program", version=version, depends=depends, files=files, fault=fault)


def library(version: str, *, fault: str = "") -> Deb:
    files = {"lib/target/library.so": version.encode()}
    return Deb(name="library", version=version, files=files, fault=fault)


def known(root: Path) -> dict[str, Any]:
    record = packages.root_record(root)
    assert record is not None
    return record


def test_a_closure_in_one_tree(archive: Archive) -> None:
    archive.publish("trixie", program("1:1.0-1"), library("1.0-1"), library("2.0-1"))
    root = packages.extract(PROGRAM)
    assert (root / "usr/bin/program").read_bytes() == b"1:1.0-1"
    # Debian 12 has libraries in /lib, later releases in /usr/lib
    assert (root / "usr/lib/target/library.so").read_bytes() == b"2.0-1"
    assert (root / "usr/lib64/loader").is_file()
    record = known(root)
    assert record["packages"] == {"program": "1:1.0-1", "library": "2.0-1"}
    assert (record["version"], record["suite"]) == ("1:1.0-1", "trixie")
    asked = len(archive.requests)
    assert packages.extract(PROGRAM) == root
    assert len(archive.requests) == asked


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing", "short", "changed"])
def test_a_dependency_that_cannot_be_had_is_left_out_of_what_apt_resolves(
    archive: Archive, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.publish(
        "trixie",
        *(program("1.0-1"), program("1.1-1", fault=fault)),
        *(library("1.0-1"), library("1:2.0+b-1~a", fault=fault), library("3.0-1", fault=fault)),
    )
    record = known(packages.extract(PROGRAM))
    # in Debian's order of versions the one with the epoch is the newest
    assert record["packages"] == {"program": "1.0-1", "library": "1.0-1"}
    assert {(one["package"], one["version"]) for one in record["refused"]} == {
        *(("program", "1.1-1"), ("library", "1:2.0+b-1~a"), ("library", "3.0-1"))
    }
    assert "using 1.0-1 from trixie" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_next_release_is_taken_as_a_whole(archive: Archive) -> None:
    archive.publish("trixie", program("1.0-1"), library("1.0-1", fault="missing"))
    archive.publish("sid", program("2.0-1"), library("2.0-1", fault="missing"))
    archive.publish("sid-updates", library("2.1-1"))
    record = known(packages.extract(PROGRAM))
    assert record["packages"] == {"program": "2.0-1", "library": "2.1-1"}
    assert record["suite"] == "sid+sid-updates"
    assert record["why"].startswith("a newer version; the mirror does not give trixie: library")


def test_backports_come_before_their_release(archive: Archive) -> None:
    wanted = UserSpace("program", (Release("bookworm-backports", ("bookworm",)),))
    archive.publish("bookworm", program("7.2-1"), library("1.0-1"))
    archive.publish("bookworm-backports", program("10.0-1", depends="library (>= 1)"))
    assert known(packages.extract(wanted))["packages"] == {"program": "10.0-1", "library": "1.0-1"}


@pytest.mark.slow
def test_nothing_can_be_had(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "ROUNDS", 2)
    endless = [library(f"{number}.0-1", fault="missing") for number in range(4)]
    archive.publish("trixie", program("1.0-1"), *endless)
    archive.publish("sid", library("1.0-1"))
    archive.publish("sid-updates")
    with pytest.raises(MirrorError) as raised:
        packages.extract(PROGRAM)
    text = str(raised.value)
    assert "\n" not in text
    for named in ("trixie: library 3.0-1, library 2.0-1 (404 ", "more is missing", "sid"):
        assert named in text
    assert packages.root_record(packages.root_of(PROGRAM)) is None


def test_a_package_without_what_it_depends_on(archive: Archive) -> None:
    alone = UserSpace("program", (Release("trixie"),), alone=True)
    archive.publish("trixie", program("1.9-1"), program("1.10-1"), program("2.0-1", fault="short"))
    assert known(packages.extract(alone))["packages"] == {"program": "1.10-1"}


def test_offline(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "1")
    with pytest.raises(LabError, match="offline: program of trixie for ppc64el is missing"):
        packages.extract(PROGRAM)
    assert archive.requests == []
    monkeypatch.delenv(packages.OFFLINE_VARIABLE)
    archive.publish("trixie", program("1.0-1", depends=""))
    root = packages.extract(PROGRAM)
    archive.requests.clear()
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "1")
    assert packages.extract(PROGRAM) == root
    assert archive.requests == []


@pytest.mark.slow
def test_a_suite_beside_the_one_that_is_needed_may_have_no_index(archive: Archive) -> None:
    wanted = UserSpace("program", (Release("trixie", ("trixie-updates", "trixie-gone")),))
    archive.publish("trixie", program("1.0-1"), library("1.0-1", fault="missing"))
    archive.publish("trixie-updates", library("1.1-1"))
    record = known(packages.extract(wanted))
    assert record["packages"] == {"program": "1.0-1", "library": "1.1-1"}
    assert record["refused"][0]["suite"] == "trixie-gone"
