"""Commands that need no target."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.measure import Row, best, run

__all__ = ["rows"]


def rows(repeat: int) -> Iterator[Row]:
    """Measure the commands beside a Python that does nothing."""
    click = best(2 * repeat, lambda: run("-c", "import click")) * 1000
    nothing = best(2 * repeat, lambda: run("-c", "pass")) * 1000
    for name, arguments in (
        ("inspector --help", ("--help",)),
        ("inspector decode", ("decode", "0x10000001014001")),
    ):
        value = best(2 * repeat, lambda a=arguments: run("-m", "inspector", *a)) * 1000  # type: ignore[misc]
        yield Row(
            name,
            value,
            "ms",
            "python -c pass",
            nothing,
            at_most=3,
            parts={"python that imports click": click},
            why="click, which reads the command line, is most of it",
        )
