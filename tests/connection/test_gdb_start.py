"""GDB is started without the commands that the user, the folder or the machine has for it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from inspector.live.gdb import CANDIDATES
from inspector.live.mi import GdbProcess

GDB = next(filter(None, map(shutil.which, CANDIDATES)), None)
PLACES = (
    "home/.gdbinit",
    "home/.gdbearlyinit",
    "home/.config/gdb/gdbinit",
    "home/.config/gdb/gdbearlyinit",
    "xdg/gdb/gdbinit",
    "xdg/gdb/gdbearlyinit",
    "cwd/.gdbinit",
)


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Init files in every place; each of them reports that it was run."""
    for name in PLACES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"shell touch {tmp_path}/ran-{name.replace('/', '-')}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.mark.needs_gdb
def test_no_init_file_is_run(bait: Path) -> None:
    gdb = GdbProcess()
    try:
        allowed = [
            gdb.console(f"show auto-load {kind}")
            for kind in ("gdb-scripts", "python-scripts", "local-gdbinit", "libthread-db")
        ]
    finally:
        gdb.close()
    assert all(text.rstrip().endswith("is off.") for text in allowed), allowed
    assert not list(bait.glob("ran-*"))


@pytest.mark.needs_gdb
def test_the_bait_is_good(bait: Path) -> None:
    """A GDB that is started as usual runs some of the init files."""
    assert GDB is not None
    subprocess.run([GDB, "-batch"], check=False, capture_output=True, env=dict(os.environ))
    assert list(bait.glob("ran-*"))
