"""The shape of the package: which module imports which, and where a rule is written down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inspector

PACKAGE = Path(inspector.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

FLOORS = (
    ("__init__", "errors", "regions", "encoding", "hash_encoding", "pte"),
    ("options", "plugins", "progress", "schemas", "storage"),
    ("memory",),
    ("dumps",),
    ("live",),
    ("image",),
    ("structures",),
    ("kernel",),
    ("kvm",),
    ("checks",),
    ("questions",),
    ("capture",),
    ("moment",),
    ("session",),
    ("diagnosis", "following", "watch"),
    ("reports",),
    ("api",),
    ("cli",),
    ("__main__",),
)
"""The floors of the package: each imports from itself and from the floors before it."""

BESIDE = {
    # The model is built on the words alone, so the code that it checks takes no part in the check.
    "model": {"encoding", "pte", "model"},
    # GDB's Python has no third-party packages, so the script imports only modules that need none.
    "gdb_scripts": {"encoding", "reports"},
}
"""Packages outside the order of floors, with everything that they may import."""

FRONT = {"api"}
"""Modules that the package itself offers, and imports only on first use."""

STANDARD_ONLY = ("encoding", "hash_encoding", "pte", "model")
MODEL_READERS = {
    "checks",
    "questions",
    "following",
    "reports",
    "cli",
    "model",
}


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            if node.module == "inspector":
                yield from (f"inspector.{alias.name}" for alias in node.names)
            else:
                yield node.module


def own(path: Path) -> set[str]:
    """Return the parts of the package that a file imports from."""
    found = set()
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "inspector" and rest and rest != "__version__":
            found.add(rest.split(".")[0])
    return found


def test_every_part_has_its_floor() -> None:
    known = {name for floor in FLOORS for name in floor} | BESIDE.keys()
    assert {part(path) for path in SOURCES} == known


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_down(path: Path) -> None:
    here = part(path)
    if path == PACKAGE / "__init__.py":
        allowed = FRONT
    elif here in BESIDE:
        allowed = BESIDE[here]
    else:
        level = next(i for i, floor in enumerate(FLOORS) if here in floor)
        allowed = {name for floor in FLOORS[:level] for name in floor} | {here}
        if here in MODEL_READERS:
            allowed |= BESIDE.keys()
    assert own(path) <= allowed


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_the_words_and_the_model_need_the_standard_library_only(name: str) -> None:
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in SOURCES
        if part(path) == name
    ]
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import "
        + ", ".join(module.removesuffix(".__init__") for module in modules)
        + "; print(*sorted(m for m in sys.modules if m.startswith('inspector')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = {module.split(".")[1] for module in done.stdout.split() if "." in module}
    assert loaded <= set(STANDARD_ONLY)


def test_what_gdb_imports_needs_the_standard_library_only() -> None:
    script = PACKAGE / "gdb_scripts" / "kvmhv.py"
    modules = [name for name in imports(script) if name.startswith("inspector")]
    assert len(modules) == 2
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False)
    assert done.returncode == 0


LPID_SHIFT = 52
RMAP_MASKS = {0xFFF0_0000_0000_0000, 0x000F_FFFF_FFFF_F000, 0xFFFF_FFFF_FFFF_F000}


def rmap_bits(tree: ast.AST) -> Iterator[str]:
    """Yield every use of the masks of an rmap word, and every shift by its LPID's place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift | ast.RShift):
            if getattr(node.right, "value", None) == LPID_SHIFT:
                yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in RMAP_MASKS:
            yield f"{node.value:#x}"


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_bits_of_an_rmap_word_are_written_down_once(path: Path) -> None:
    found = list(rmap_bits(ast.parse(path.read_text())))
    assert (found != []) is (path.name == "encoding.py")


def test_a_shift_of_an_rmap_word_would_be_seen() -> None:
    assert list(rmap_bits(ast.parse("word >> 52 & 0xFFF"))) == ["word >> 52"]


def test_the_lab_installs_with_python_alone() -> None:
    lab = Path(__file__).parent.parent / "fixtures" / "lab" / "lab"
    done = subprocess.run(
        [sys.executable, "-S", str(lab), "install", "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    assert done.returncode == 0, done.stderr
