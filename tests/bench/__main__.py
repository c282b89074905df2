"""Measure, print the table, and write its page."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

import inspector
from fixtures.lab import linuxstack, machine, packages
from fixtures.lab.machine import Machine, MachineSpec
from inspector.errors import InspectorError
from tests.bench import guest, live, offline, start
from tests.bench.measure import Row
from tests.bench.report import page, table

SCHEMA = "inspector.bench/1"
PARTS = ("start", "live", "guest", "lists", "dumps", "scale")
OFTEN = 3
"""The most checks of one large image."""
PAGE = Path(inspector.__file__).parent / "manual" / "performance.md"


def main(arguments: list[str] | None = None) -> None:
    """Run the chosen measurements."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="only these rows")
    parser.add_argument("--repeat", type=int, default=5, help="take the best of so many")
    parser.add_argument("--machine", help="a running stack of `lab linux`; booted if not given")
    parser.add_argument(
        "--dump",
        type=Path,
        action="append",
        default=[],
        help="a dump to open, in place of those that are made",
    )
    parser.add_argument("--scratch", type=Path, help="where dumps are made: 15 GiB for a while")
    parser.add_argument("--gib", type=int, nargs="+", default=[1, 8, 64], help="L1 memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} in the manual")
    parser.add_argument(
        "--from",
        dest="recorded",
        type=Path,
        action="append",
        help="take the rows of a recorded run; of several, the first that has a row",
    )
    options = parser.parse_args(arguments)
    if options.recorded:
        document = _joined([json.loads(path.read_text()) for path in options.recorded])
    else:
        document = _measured(options)
    rows = [Row.from_json(row) for row in document["rows"]]
    print(*table(rows), sep="\n")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    if options.page:
        PAGE.write_text("\n".join(page(document, rows)) + "\n")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    rows: list[Row] = []
    for row in _rows(options):
        rows.append(row)
        print(f"  {row.name}: {row.value}", flush=True)
    return {
        "schema": SCHEMA,
        "repeat": options.repeat,
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rows": [row.to_json() for row in rows],
    }


def _joined(documents: list[dict[str, Any]]) -> dict[str, Any]:
    rows = {row["name"]: row for document in reversed(documents) for row in document["rows"]}
    order = {row["name"]: None for document in documents for row in document["rows"]}
    load = max(document["load"] for document in documents)
    return documents[0] | {"load": load, "rows": [rows[name] for name in order]}


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    wanted = set(options.only or PARTS)
    often = min(options.repeat, OFTEN)
    if "start" in wanted:
        yield from _as_far(start.rows(options.repeat))
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        files = {path.name: path for path in options.dump}
        if wanted & {"live", "guest"} or ("dumps" in wanted and not files):
            with _machine(lambda: _linux(options)) as linux:
                if linux and "live" in wanted:
                    yield from _as_far(live.rows(linux, options.repeat))
                if linux and "guest" in wanted:
                    yield from _as_far(guest.linux_rows(linux))
                if linux and "dumps" in wanted and not files:
                    files = offline.dumped(linux, Path(folder))
        if "guest" in wanted:
            with _machine(lambda: _exerciser("mixed")) as small:
                if small:
                    yield from _as_far(guest.rows(small, "the exerciser's machine"))
        if "lists" in wanted:
            with _machine(lambda: _exerciser("lists")) as lists:
                if lists:
                    yield from _as_far(live.lists_rows(lists, options.repeat))
        if "dumps" in wanted:
            yield from _as_far(offline.dump_rows(files, often))
    if "scale" in wanted and importlib.util.find_spec(offline.SCALE):
        yield from _as_far(offline.scale_rows(tuple(options.gib), often))


def _as_far(rows: Iterator[Row]) -> Iterator[Row]:
    """Yield rows until one cannot be measured, and print why."""
    try:
        yield from rows
    except (InspectorError, packages.LabError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"  no more of these: {error}", flush=True)


@contextlib.contextmanager
def _machine(start: Callable[[], AbstractContextManager[Machine]]) -> Iterator[Machine | None]:
    """Yield a machine; if there cannot be one, print why and yield None."""
    with contextlib.ExitStack() as stack:
        given = None
        try:
            given = stack.enter_context(start())
        except packages.LabError as error:
            print(f"  no machine: {error}", flush=True)
        yield given


def _linux(options: argparse.Namespace) -> AbstractContextManager[Machine]:
    if options.machine:
        return contextlib.nullcontext(machine.load(options.machine))
    return linuxstack.start()


def _exerciser(scenario: str) -> Machine:
    return Machine.start(
        MachineSpec(scenario=scenario, idle="work", name=f"bench-{scenario}"), wait=600
    )


if __name__ == "__main__":
    # let Python keep compiled modules, as it does from a user's second run on
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
