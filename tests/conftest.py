"""Settings that all tests share, and the tiers they are run in.

    pytest -m quick    the short tests: no live machine, none that is marked slow
    pytest             every test that boots no machine; needs nothing but Python
    pytest -m live     the tests that boot machines of the lab (tests/live)
    pytest --full      everything, with searches and property tests in their thorough profile

``pytest --full -m "not live"`` is the thorough profile without machines. A
test is quick unless it is live, runs on a shipped capture that is not one of
``QUICK_CAPTURES``, or carries the marker ``slow``, which belongs to a test that
takes more than half a second in all its cases. A test that needs something
that is missing is skipped, and the last line says what is missing and how to
get it. If CI is set and live tests were asked for, the test fails instead.

With pytest-xdist, a run of the whole directory uses every processor. The live
tests of one module share machines, so they go to one worker.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import tests.profiles  # registers them  # noqa: F401
from fixtures.lab.fakestub.trial import why_no_gdb
from tests.fixtures import CAPTURES

TESTS = Path(__file__).parent
LIVE = TESTS / "live"
LIVE_SECONDS = 6
"""Seconds that a live test takes on two processors, on average over all of them."""

MOST_WORKERS = 8
QUICK_CAPTURES = ("powernv9-mixed", "powernv9-stale-5.10-64k", "powernv9-two-vms")
"""The captures of the quick tier, among those of tests that run over every shipped capture."""

TOGETHER = ("tests/schemas/test_documents.py", "tests/live/")
"""Modules whose tests need one process: they share machines, or the results of one another."""

OWN_CODE = r"(inspector|gdb_scripts|fixtures|tests)(\.|$)"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs everything."""
    parser.addoption(
        "--full",
        action="store_true",
        help="run live tests too, and searches and property tests in their thorough profile",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose the profile before the tests are imported; with --full, make warnings errors."""
    settings.load_profile("thorough" if config.getoption("full") else "short")
    if config.getoption("full"):
        config.addinivalue_line("filterwarnings", f"error:::{OWN_CODE}")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Give a run of the whole directory a worker for each processor."""
    option = config.option
    if "numprocesses" not in option or option.numprocesses is not None:
        return
    wholes = (TESTS.parent, TESTS, LIVE)
    whole = all(Path(argument).resolve() in wholes for argument in config.args)
    worker = hasattr(config, "workerinput")
    if worker or not whole or option.keyword or option.usepdb or option.collectonly:
        return
    workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
    if workers > 1:
        option.numprocesses = workers


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give each test to any free worker, but the tests of a module of ``TOGETHER`` to one."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return module if module.startswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put every test into its tier, before ``-m`` chooses among them."""
    for item in items:
        if item.path.is_relative_to(LIVE):
            item.add_marker("live")
            if not _asks_for_live(config):
                item.add_marker(pytest.mark.skip(reason=_how_to_run_live()))
        elif not item.get_closest_marker("slow") and _capture_of(item) in (None, *QUICK_CAPTURES):
            item.add_marker("quick")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say that machines will boot, before they do."""
    _say_that_machines_boot(session.config, [item.nodeid for item in session.items])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Say it only once, although every worker collects the tests."""
    if node.gateway.id == "gw0":
        _say_that_machines_boot(node.config, ids)


def _say_that_machines_boot(config: pytest.Config, tests: list[str]) -> None:
    live = sum(test.startswith("tests/live/") for test in tests)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if live and reporter is not None and _asks_for_live(config):
        minutes = math.ceil(live * LIVE_SECONDS / 60)
        reporter.write_line(
            f"{live} live tests boot machines under QEMU: about {minutes} min on 2 processors"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs a GDB if there is none."""
    if item.get_closest_marker("needs_gdb") and why_no_gdb():
        text = "need a GDB for POWER: apt install gdb-multiarch"
        if os.environ.get("CI") and _asks_for_live(item.config):
            pytest.fail(text)
        pytest.skip(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what was skipped and what would enable it."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    if reasons:
        listed = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"not run: {listed}")


def _capture_of(item: pytest.Item) -> str | None:
    """Return the shipped capture that is named in a test's parameters."""
    named = [path.name.partition(".core")[0] for path in CAPTURES]
    return max((name for name in named if name in item.name), key=len, default=None)


def _asks_for_live(config: pytest.Config) -> bool:
    """Say whether live tests were asked for: by --full, by their marker or by their path."""
    expression = config.option.markexpr
    if "not live" in expression:
        return False
    if config.getoption("full") or "live" in expression:
        return True
    places = (Path(argument.partition("::")[0]).resolve() for argument in config.args)
    return any(place.is_relative_to(LIVE) for place in places)


def _how_to_run_live() -> str:
    installed = shutil.which("qemu-system-ppc64") and shutil.which("gdb-multiarch")
    command = "pytest -m live" if installed else "fixtures/lab/lab install, then pytest -m live"
    return f"live (they boot machines): {command}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the profiles that a test caches away from the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
