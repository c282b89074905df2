"""The kernel that the lab takes from a mirror whose index lists more than its pool has."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fixtures.lab import command, packages
from fixtures.lab.packages import LabError, MirrorError, host, sources
from tests.lab.archive import FAULTS, Archive, Deb, debug_package, kernel, split_kernel

KEY = "6.12-4k"
ANSWERS = {"missing": "404", "short": "unexpected size", "cut": "", "changed": "Hash Sum mismatch"}
ALL_OF_6_12 = ("trixie", "trixie-security", "bookworm-security", "bookworm-backports")


def read_record(cache: Path, key: str = KEY) -> dict[str, Any]:
    record = json.loads((cache / "kernels" / key / "kernel.json").read_text())
    assert isinstance(record, dict)
    return record


def age_the_indexes(cache: Path) -> None:
    """Make every index an hour old, as the lab sees it."""
    for stamp in cache.glob("apt/*/updated"):
        os.utime(stamp, (time.time() - 3600,) * 2)


def test_the_newest_is_taken(archive: Archive, cache: Path) -> None:
    # as text 6.12.95 would come after 6.12.107; the metapackage of a newer name is no kernel
    meta = Deb(name="linux-image-6.12-powerpc64le", version="6.12.200-1")
    archive.publish("trixie", kernel("6.12.95-1"), kernel("6.12.107-1"), meta)
    item = packages.kernel(KEY)
    assert (item.version, item.release) == ("6.12.107-1", "6.12.107+deb13-powerpc64le")
    assert item.vmlinux.read_bytes().endswith(b"6.12.107-1")
    assert len(list(item.modules.rglob("*.ko.xz"))) == 2
    record = read_record(cache)
    assert record["suite"] == "trixie"
    assert record["why"] == "the newest that trixie lists"
    assert record["refused"] == []
    assert archive.asked_debs == ["linux-image-6.12.107+deb13-powerpc64le_6.12.107-1"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_older_version_is_taken_for_one_that_cannot_be_downloaded(
    archive: Archive, cache: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    archive.publish(
        "trixie", kernel("6.12.107-1"), kernel("6.12.117-1", fault=fault), kernel("6.12.95-1")
    )
    assert packages.kernel(KEY).version == "6.12.107-1"
    record = read_record(cache)
    (refused,) = record["refused"]
    assert (refused["suite"], refused["version"]) == ("trixie", "6.12.117-1")
    assert refused["answer"]
    assert ANSWERS[fault] in refused["answer"]
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in said if line.startswith("lab: downloading")] == [
        "linux-image-6.12.117+deb13-powerpc64le=6.12.117-1",
        "linux-image-6.12.107+deb13-powerpc64le=6.12.107-1",
    ]
    assert said[-1] == (
        "lab: kernel 6.12-4k: using 6.12.107-1 from trixie; the mirror does not give trixie: "
        f"linux-image-6.12.117+deb13-powerpc64le 6.12.117-1 ({refused['answer']})"
    )
    assert command.main(["status"]) == 0
    shown = capsys.readouterr().out
    assert f"kernel {KEY}: Linux 6.12.107+deb13-powerpc64le, 6.12.107-1 from trixie; " in shown
    assert f"6.12.117-1 ({refused['answer']})" in shown
    assert command.main(["status", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["kernels"]
    assert (one["key"], one["version"], one["refused"]) == (KEY, "6.12.107-1", [refused])


@pytest.mark.slow
def test_a_further_suite_keeps_the_series(archive: Archive, cache: Path) -> None:
    # of the other suites one has no index, one no version to fetch, and the last one has both
    archive.publish("trixie", kernel("6.12.117-1", fault="missing"), kernel("7.2.13-1"))
    archive.publish("bookworm-security", kernel("6.12.113-1", fault="missing"), kernel("6.1.9-1"))
    archive.publish("bookworm-backports", kernel("6.12.95-1"), kernel("6.13.1-1"))
    assert packages.kernel(KEY).version == "6.12.95-1"
    record = read_record(cache)
    assert record["suite"] == "bookworm-backports"
    assert record["why"].startswith("the same series, built for Debian 12; ")
    refused = [(one["suite"], one["version"]) for one in record["refused"]]
    assert refused == [
        ("trixie", "6.12.117-1"),
        ("trixie-security", ""),
        ("bookworm-security", "6.12.113-1"),
    ]


@pytest.mark.slow
def test_where_nothing_can_be_had_the_mirror_is_named_and_other_kernels_come_all_the_same(
    archive: Archive,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packages, "install_host", lambda: None)
    archive.publish(
        "trixie",
        kernel("6.12.117-1", fault="missing"),
        kernel("6.12.107-1", fault="short"),
        kernel("6.12.107-1", flavour="powerpc64le-64k"),
    )
    archive.publish("trixie-security", kernel("6.12.113-1", fault="changed"))
    assert command.main(["install", "--kernel", KEY, "6.12-64k"]) == command.MIRROR_FAILED
    out, err = capsys.readouterr()
    assert out.startswith("ready: Linux 6.12.107+deb13-powerpc64le-64k in ")
    (line,) = [line for line in err.splitlines() if "gives no version" in line]
    assert "mirror's fault" in line
    for named in (*ALL_OF_6_12, "6.12.117-1 (404", "6.12.107-1 (File has", "6.12.113-1 (Hash"):
        assert named in line


def test_every_part_of_a_split_kernel_must_come(archive: Archive, cache: Path) -> None:
    archive.publish("sid", *split_kernel("7.2.14-1", fault="missing"), *split_kernel("7.2.13-1"))
    item = packages.kernel("sid-4k")
    assert (item.version, item.package) == ("7.2.13-1", "linux-binary-7.2.13+deb14-powerpc64le")
    (refused,) = read_record(cache, "sid-4k")["refused"]
    assert refused["package"] == "linux-modules-7.2.14+deb14-powerpc64le"


def test_a_part_that_the_index_does_not_list(archive: Archive) -> None:
    image, binary, _ = split_kernel("7.2.14-1")
    archive.publish("sid", image, binary, *split_kernel("7.2.13-1"))
    assert packages.kernel("sid-4k").version == "7.2.13-1"


@pytest.mark.slow
def test_an_index_that_the_mirror_has_left_behind_is_fetched_again(
    archive: Archive, cache: Path
) -> None:
    archive.publish("trixie", kernel("6.12.107-1", flavour="powerpc64le-64k"), kernel("6.12.94-1"))
    packages.kernel("6.12-64k")
    archive.publish("trixie", kernel("6.12.94-1", fault="missing"), kernel("6.12.95-1"))
    age_the_indexes(cache)
    assert packages.kernel(KEY).version == "6.12.95-1"
    assert read_record(cache)["refused"] == []


@pytest.mark.slow
def test_a_debug_file_is_of_the_kernel_that_is_used(archive: Archive, cache: Path) -> None:
    archive.publish(
        "trixie",
        *(kernel("6.12.117-1", fault="missing"), debug_package("6.12.117-1")),
        *(kernel("6.12.107-1"), debug_package("6.12.107-1")),
    )
    path = packages.debug_file(KEY)
    assert path.read_bytes().endswith(b"6.12.107-1")
    assert packages.debug_files(KEY, ["kvm", "kvm-hv"])["kvm"].read_bytes().endswith(b"107-1")
    assert path.exists()
    asked = len(archive.requests)
    assert packages.debug_files(KEY, ["kvm", "kvm-hv"])["kvm-hv"] == path
    path.write_bytes(path.read_bytes()[:-1])
    assert packages.cached_debug_file(KEY) is None
    assert len(archive.requests) == asked
    assert packages.debug_file(KEY).read_bytes().endswith(b"6.12.107-1")


@pytest.mark.slow
def test_a_debug_file_of_another_version_is_never_taken(archive: Archive) -> None:
    archive.publish(
        "trixie",
        *(kernel("6.12.107-1"), debug_package("6.12.107-1", fault="missing")),
        debug_package("6.12.107-2"),
    )
    with pytest.raises(MirrorError, match=r"debug files of kernel 6\.12-4k, 6\.12\.107-1: .*404"):
        packages.debug_file(KEY)


def test_what_is_cached_needs_no_mirror_and_stays_when_there_is_newer(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish("trixie", kernel("6.12.107-1"))
    packages.kernel(KEY)
    archive.publish("trixie", kernel("6.12.107-1"), kernel("6.12.117-1"))
    archive.requests.clear()
    assert packages.kernel(KEY).version == "6.12.107-1"
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "1")
    assert packages.kernel(KEY).version == "6.12.107-1"
    assert archive.requests == []


@pytest.mark.parametrize("arguments", [["install"], ["up", "--name", "offline"]])
def test_offline_names_what_is_missing(
    archive: Archive,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    archive.publish("trixie", kernel("6.12.107-1"))
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "")
    assert command.main([*arguments, "--offline", "--kernel", KEY]) == 1
    out, err = capsys.readouterr()
    (line,) = (out + err).splitlines()
    assert line.startswith("lab: offline: ")
    assert f"kernel {KEY}" in line
    assert archive.requests == []


def test_offline_with_everything(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.publish("trixie", kernel("6.12.107-1"))
    packages.kernel(KEY)
    archive.requests.clear()
    monkeypatch.setenv(packages.OFFLINE_VARIABLE, "")
    monkeypatch.setattr(host, "missing_host_packages", list)
    monkeypatch.setattr(packages, "missing_host_packages", list)
    capsys.readouterr()
    assert command.main(["install", "--offline", "--kernel", KEY]) == 0
    assert capsys.readouterr().err == ""
    assert archive.requests == []


def test_a_mirror_that_goes_away_after_its_index(archive: Archive) -> None:
    archive.publish("trixie", kernel("6.12.107-1"), kernel("6.12.95-1"))
    archive.gone_at = ".deb"
    with pytest.raises(MirrorError) as raised:
        packages.kernel(KEY)
    text = str(raised.value)
    assert "6.12.107-1" in text
    assert "\n" not in text
    assert "onnect" in text or "closed" in text


def test_a_mirror_that_is_not_there(archive: Archive) -> None:
    archive.gone_at = "Release"
    with pytest.raises(MirrorError, match=r"mirror cannot be reached \(trixie: no index: .*onnect"):
        packages.kernel(KEY)


@pytest.mark.slow
def test_an_old_index_will_do_where_the_mirror_gives_no_new_one(
    archive: Archive, cache: Path
) -> None:
    archive.publish("trixie", kernel("6.12.107-1", flavour="powerpc64le-64k"), kernel("6.12.95-1"))
    packages.kernel("6.12-64k")
    for stamp in cache.glob("apt/*/updated"):
        os.utime(stamp, (0, 0))
    (archive.folder / "dists/trixie/main/binary-ppc64el/Packages").write_bytes(b"half of it")
    assert packages.kernel(KEY).version == "6.12.95-1"


def test_an_index_that_is_damaged_here_is_fetched_again(archive: Archive, cache: Path) -> None:
    archive.publish("trixie", kernel("6.12.107-1", flavour="powerpc64le-64k"), kernel("6.12.95-1"))
    packages.kernel("6.12-64k")
    (index,) = cache.glob("apt/*/lists/*Packages*")
    index.write_bytes(index.read_bytes()[:-20])
    for other in ("sources.list", "apt.conf"):
        (index.parents[1] / other).write_bytes(b"\xff")
    assert packages.kernel(KEY).version == "6.12.95-1"


def test_a_kernel_that_must_be_built_and_one_that_nobody_knows(cache: Path) -> None:
    with pytest.raises(LabError, match=r"build-kernel 5\.10-64k"):
        packages.kernel("5.10-64k")
    with pytest.raises(LabError, match=r"unknown kernel '5\.11'"):
        packages.kernel("5.11")


def test_an_archive_without_a_signature_is_no_mirror(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.publish("trixie", kernel("6.12.107-1"))
    monkeypatch.setattr(sources, "mirror", lambda: sources.Source(archive.uri, (), None))
    monkeypatch.setattr(sources, "host_sources", lambda: iter(()))
    with pytest.raises(MirrorError, match=r"trixie: .*is not signed"):
        packages.kernel(KEY)
    assert archive.asked_debs == []


@pytest.mark.parametrize("text", ["nonsense", "http://host/debian sid main\ndeb http://x"])
def test_a_mirror_that_is_no_address(
    cache: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(sources.MIRROR_VARIABLE, text)
    with pytest.raises(LabError, match=r"INSPECTOR_LAB_MIRROR is .*, which is no address"):
        packages.kernel(KEY)
