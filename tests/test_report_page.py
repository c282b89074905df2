"""The page of ``inspector report``: its numbers, its escaping, its look in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fixtures.mutations.damage import Mutation, vm_met_twice
from fixtures.mutations.mutant import Mutant
from fixtures.synthetic import FakeVm, MemslotRange, build
from inspector.capture import Capture, write_capture
from inspector.checks.verdict import judge
from inspector.cli import cli
from inspector.model.vm import VmState
from inspector.reports.charts import COLOURS
from inspector.reports.figures import BINS, figures_of
from tests.builders import leaf, table, words
from tests.fixtures import CAPTURES, SMALL, SPREAD, opened

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WITH_BROWSER = "INSPECTOR_TEST_BROWSER"
COUNTS = (
    "slots",
    "entries",
    "singles",
    "lists",
    "longest_list",
    "live",
    "stale",
    "not_known",
    "shadow_leaves",
    "host_leaves",
    "pending_invalidations",
)


class Page(HTMLParser):
    """The contents of a page, by its data attributes; it would load the ``foreign`` addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.counts: dict[tuple[int, str], int] = {}
        self.stale: dict[tuple[int, str], int] = {}
        self.nodes: dict[tuple[int, str], int] = {}
        self.verdict = ""
        self.findings: list[str] = []
        self.doubts: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.foreign: list[str] = []
        self.script = ""
        self._vm = -1
        self._into: tuple[str, str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if "data-vm" in given:
            self._vm = int(given["data-vm"])
        for kind in ("count", "stale", "nodes", "verdict"):
            if f"data-{kind}" in given:
                self._into = kind, given[f"data-{kind}"]
        if "data-finding" in given:
            self.findings.append(given["data-finding"])
        if "data-doubt" in given:
            self.doubts.append(given["data-doubt"])
        if tag == "script":
            self._into = "script", ""
        if "id" in given:
            self.ids.append(given["id"])
        for name in ("src", "href", "xlink:href"):
            if not given.get(name, "#").startswith("#"):
                self.foreign.append(given[name])

    def handle_data(self, data: str) -> None:
        if self._into is None:
            return
        (kind, name), self._into = self._into, None
        if kind == "count":
            self.counts[self._vm, name] = int(data)
        elif kind == "stale":
            self.stale[self._vm, name] = int(data)
        elif kind == "nodes":
            self.nodes[self._vm, name] = int(data)
        elif kind == "verdict":
            self.verdict = data
        else:
            self.script = data


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def report(target: str, output: Path) -> Page:
    """Make the page, and check that it says the same as ``check --json``."""
    checked = run("check", target, "--json")
    made = run("report", target, "-o", str(output))
    assert made.exit_code == checked.exit_code, made.output
    text = output.read_text(encoding="utf-8")
    document, page = json.loads(checked.stdout), Page(text)
    assert page.verdict == document["verdict"]
    parts = (document, *document["vms"])
    for shown, name in ((page.findings, "findings"), (page.doubts, "doubts")):
        assert shown == [one["invariant"] for part in parts for one in part[name]]
    for vm in document["vms"]:
        for name in COUNTS:
            assert page.counts[vm["vm_lpid"], name] == vm[name]
        assert page.counts[vm["vm_lpid"], "findings"] == len(vm["findings"])
        for name, number in vm["list_nodes"].items():
            assert page.nodes[vm["vm_lpid"], name] == number
        for reason, count in vm["stale_by_reason"].items():
            assert page.stale[vm["vm_lpid"], reason] == count
    assert json.loads(page.script) == document
    assert page.foreign == []
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|http-equiv', "", text)
    assert len(page.ids) == len(set(page.ids))
    assert not any(colour in text for colour in COLOURS.values())
    return page


@pytest.mark.slow
@pytest.mark.parametrize("path", SPREAD, ids=lambda path: path.name.split(".core")[0])
def test_the_page_says_what_check_says(path: Path, tmp_path: Path) -> None:
    page = report(str(path), tmp_path / "page.html")
    nested = any(vm.nested and len(vm.rmaps) for vm in opened(path).snapshot.vms)
    assert ("svg" in page.tags) or not nested


def left_of_nobody(mutant: Mutant) -> None:
    """The second doubleword of a partition-table entry that no guest has."""
    first = mutant.need(mutant.before.host.first_entry).where
    mutant.write_pte(first + 16 * 900 + 8, 0x1_0000)


@pytest.mark.parametrize(
    ("damage", "findings", "doubts"),
    [(vm_met_twice, ["vm-list"], []), (left_of_nobody, [], ["partition-owner"])],
)
def test_what_is_wrong_with_the_host_is_shown(
    damage: Mutation, findings: list[str], doubts: list[str], tmp_path: Path
) -> None:
    mutant = Mutant(SMALL)
    damage(mutant)
    page = report(str(mutant.save(tmp_path / "damaged")), tmp_path / "page.html")
    assert page.findings == findings
    assert page.doubts == doubts


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name.split(".core")[0])
def test_the_figures_add_up_to_the_counts(path: Path) -> None:
    acquired = opened(path)
    figures = {one.lpid: one for one in figures_of(judge(acquired.snapshot))}
    for vm in judge(acquired.snapshot).vms:
        if not vm.vm.radix:
            assert vm.vm.lpid not in figures
            continue
        one, counts = figures[vm.vm.lpid], vm.counts
        assert sum(one.lengths.values()) == counts.slots
        assert sum(n * slots for n, slots in one.lengths.items()) == counts.entries
        assert sum(guest.live for guest in one.guests) == counts.live
        assert sum(guest.stale for guest in one.guests) == sum(counts.stale.values())
        assert sum(guest.not_known for guest in one.guests) == counts.unknown
        assert sum(guest.shadow_leaves for guest in one.guests) == counts.shadow_leaves
        assert sum(one.page_sizes["L0's table"].values()) == counts.host_leaves
        assert sum(one.page_sizes["shadow tables"].values()) == counts.shadow_leaves
        assert max((one.entries for one in one.longest), default=0) == (
            counts.longest if counts.longest > 1 else 0
        )
        if one.occupancy:
            assert one.occupancy.pages.shape[1] <= BINS
            live = {guest.lpid: guest.live for guest in one.guests}
            for lpid, row in zip(one.occupancy.lpids, one.occupancy.pages, strict=True):
                assert 0 < int(np.sum(row)) <= live[lpid]


def test_where_a_guest_is_mapped(tmp_path: Path) -> None:
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000), leaf(0x80_000, 0x40_1000)),
        {1: words((1, 0x5000), (2, 0x5000)), 128: words((1, 0x7000))},
        {1: table(leaf(0x5000, 0x40_0000), leaf(0x7000, 0x40_1000)), 2: table()},
    )
    image = build([FakeVm(state, (MemslotRange(0, 192, 0x7F00_0000_0000),))])
    path = tmp_path / "made"
    write_capture(path, Capture(image.memory, image.profile, {}))
    (figures,) = figures_of(judge(opened(path).snapshot))
    assert figures.occupancy is not None
    assert (figures.occupancy.first, figures.occupancy.step) == (0, 2)
    assert figures.occupancy.lpids == (1,)
    assert np.flatnonzero(figures.occupancy.pages[0]).tolist() == [0, 64]
    assert figures.lengths == {1: 1, 2: 1}
    assert [(one.lpid, one.live, one.stale) for one in figures.guests] == [(1, 2, 0), (2, 0, 1)]


EVIL = "<script>alert('&\"')</script>"


def violating(path: Path) -> str:
    """Save a capture with a finding, and with markup in its description of itself."""
    state = VmState(
        12,
        table(leaf(0x1000, 0x40_0000), leaf(0x2000, 0x40_1000)),
        {1: words((1, 0x5000))},
        {1: table(leaf(0x5000, 0x40_0000), leaf(0x7000, 0x40_1000))},
    )
    image = build([FakeVm(state, (MemslotRange(0, 512, 0x7F00_0000_0000),), lpid=9)])
    write_capture(path, Capture(image.memory, image.profile, {EVIL: EVIL}))
    return str(path)


@pytest.mark.slow
def test_findings_are_shown_with_their_proof_and_text_is_escaped(tmp_path: Path) -> None:
    target, output = violating(tmp_path / "made"), tmp_path / "page.html"
    assert report(target, output).verdict == "violations"
    text = output.read_text()
    assert "Finding 1: shadow-leaf-covered" in text
    (vm,) = json.loads(run("check", target, "--json").stdout)["vms"]
    for item in vm["findings"][0]["evidence"]:
        assert item["address"] in text
        assert item["value"] is None or item["value"] in text
    assert EVIL not in text
    assert "&lt;script&gt;alert(" in text
    assert text.count("<script") == 1


def test_a_page_of_a_document(tmp_path: Path) -> None:
    target, saved, output = violating(tmp_path / "made"), tmp_path / "check.json", tmp_path / "page"
    document = run("check", target, "--json").stdout
    saved.write_text(document)
    made = run("report", str(saved), "-o", str(output), "--json")
    assert made.exit_code == 1
    said = json.loads(made.stdout)
    assert (said["schema"], said["verdict"]) == ("inspector.report/1", "violations")
    assert said["bytes"] == output.stat().st_size
    page = Page(output.read_text())
    assert json.loads(page.script) == json.loads(document)
    assert "svg" not in page.tags
    assert "has no entries to draw" in output.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "{",
        '{"schema": "inspector.rmap/1"}',
        '{"schema": "inspector.check/1"}',
        '{"schema": "inspector.check/1", "target": 5}',
    ],
)
def test_a_document_that_is_none(text: str, tmp_path: Path) -> None:
    saved, output = tmp_path / "check.json", tmp_path / "page"
    saved.write_text(text)
    made = run("report", str(saved), "-o", str(output))
    assert made.exit_code != 0
    assert "inspector check --json" in str(made.exception)
    assert not output.exists()


def test_without_its_packages_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    made = run("report", str(SMALL), "-o", str(tmp_path / "page"))
    assert "pip install 'kvmhv-inspector[report]'" in str(made.exception)


@pytest.mark.skipif(not os.environ.get(WITH_BROWSER), reason=f"need chromium: set {WITH_BROWSER}=1")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(scheme: str, tmp_path: Path) -> None:
    """Offline, in both colour schemes; a corner of the picture has the page's background colour."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert browser, "no browser is installed (Debian: chromium)"
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    report(str(SMALL), page)
    subprocess.run(
        [
            browser,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1100,2600",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    from PIL import Image

    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    paper = {"light": (0xFF, 0xFF, 0xFF), "dark": (0x14, 0x18, 0x1C)}[scheme]
    live = {"light": (0x1F, 0x77, 0xB4), "dark": (0x5A, 0xA9, 0xE6)}[scheme]
    assert tuple(pixels[2, 2]) == paper
    drawn = np.all(np.abs(pixels - np.array(live)) < 3, axis=2)
    assert np.count_nonzero(drawn) > 10_000, "the charts are not there"
