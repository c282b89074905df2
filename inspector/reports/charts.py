"""The pictures of a report, as SVG that takes its colours from the page.

Matplotlib draws with colours that stand for CSS variables, which take their
place afterwards: so a picture is readable on a light and on a dark page.
"""

from __future__ import annotations

import io
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inspector.errors import TargetNotSupported
from inspector.reports.figures import GuestFigures, Occupancy

__all__ = ["guests_chart", "lengths_chart", "occupancy_chart", "page_sizes_chart"]

# The user's backend is not used, and matplotlib cannot be imported if MPLBACKEND names none.
_BACKEND = os.environ.pop("MPLBACKEND", None)
# Matplotlib warns if its cache folder cannot be used, and works without one.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
except ImportError as error:
    raise TargetNotSupported(
        "reports need packages that are not installed; "
        "install them with pip install 'kvmhv-inspector[report]'"
    ) from error
finally:
    if _BACKEND is not None:
        os.environ["MPLBACKEND"] = _BACKEND

COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "live": "#030303",
    "stale": "#040404",
    "unknown": "#050505",
    "third": "#060606",
}
"""The colours to draw with, by the names of the CSS variables that they stand for."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "inspector",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["ink"],
    "xtick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.color": COLOURS["faint"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 7.6
"""Inches; the page scales the picture to its column."""
GUESTS_SHOWN = 24
LENGTHS_SHOWN = 24
FAINTEST = 0.35
TICKS = 8
FEW = 8
"""A chart has room for at least so many bars, so that a single bar does not fill it."""

_numbers = itertools.count(1)


def lengths_chart(lengths: Mapping[int, int]) -> str:
    """Draw how many slots have how many entries, longer lists in bins of powers of two."""
    bars = _binned(lengths)
    figure, axes = _axes(2.4)
    axes.bar(range(len(bars)), list(bars.values()), 0.8, color=COLOURS["live"])
    axes.set_xticks(range(len(bars)), list(bars), rotation=45 if len(bars) > 12 else 0)
    axes.set_xlim(-0.6, max(len(bars), FEW) - 0.4)
    axes.set_xlabel("entries in a slot")
    axes.set_ylabel("slots")
    return _svg(figure, axes)


def guests_chart(guests: Sequence[GuestFigures]) -> str:
    """Draw the live, stale and not known entries of each L1 LPID; if many, of the largest."""
    chosen = sorted(guests, key=lambda one: -(one.live + one.stale + one.not_known))
    chosen = sorted(chosen[:GUESTS_SHOWN])
    figure, axes = _axes(0.9 + 0.22 * len(chosen))
    left = [0] * len(chosen)
    for name, colour in (("live", "live"), ("stale", "stale"), ("not_known", "unknown")):
        widths = [getattr(one, name) for one in chosen]
        if any(widths):
            label = name.replace("_", " ")
            axes.barh(range(len(chosen)), widths, 0.7, left, color=COLOURS[colour], label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    labels = [f"{one.lpid}" if one.present else f"{one.lpid} (gone)" for one in chosen]
    axes.set_yticks(range(len(chosen)), labels)
    axes.invert_yaxis()
    axes.set_ylabel("L1 LPID")
    axes.set_xlabel("entries")
    axes.legend(
        frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=COLOURS["ink"]
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure)


def page_sizes_chart(tables: Mapping[str, Mapping[str, int]]) -> str:
    """Draw the share of the page sizes in each table, with the number of leaves."""
    sizes = sorted({size for table in tables.values() for size in table}, key=_bytes)
    names = ("live", "stale", "third", "unknown")
    figure, axes = _axes(1.9)
    for row, table in enumerate(tables.values()):
        left, total = 0.0, sum(table.values())
        for number, size in enumerate(sizes):
            if share := table.get(size, 0) / total if total else 0:
                colour = COLOURS[names[number % len(names)]]
                axes.barh(row, share * 100, 0.6, left, color=colour)
                left += share * 100
        axes.text(101, row, f"{total} leaves", va="center", color=COLOURS["ink"])
    axes.set_yticks(range(len(tables)), list(tables))
    axes.set_ylim(len(tables) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the leaves, %")
    handles = [
        Rectangle((0, 0), 1, 1, color=COLOURS[names[number % len(names)]])
        for number in range(len(sizes))
    ]
    axes.legend(
        handles,
        sizes,
        frameon=False,
        ncols=max(1, len(sizes)),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        labelcolor=COLOURS["ink"],
    )
    return _svg(figure)


def occupancy_chart(occupancy: Occupancy, page_shift: int) -> str:
    """Draw which parts of L1's addresses are mapped through to which L2; denser is stronger."""
    chosen = sorted(range(len(occupancy.lpids)), key=lambda row: -int(occupancy.pages[row].sum()))
    chosen = sorted(chosen[:GUESTS_SHOWN])
    figure, axes = _axes(1.1 + 0.2 * len(chosen))
    step = occupancy.step << page_shift
    start = occupancy.first << page_shift
    most = int(occupancy.pages.max())
    for y, row in enumerate(chosen):
        for column, pages in enumerate(occupancy.pages[row].tolist()):
            if pages:
                strength = FAINTEST + (1 - FAINTEST) * pages / most
                axes.add_patch(
                    Rectangle(
                        (start + column * step, y - 0.4),
                        step,
                        0.8,
                        color=COLOURS["live"],
                        alpha=strength,
                        linewidth=0,
                    )
                )
    for first, pages in occupancy.memslots:
        place = (first << page_shift, len(chosen) - 0.4)
        width = pages << page_shift
        axes.add_patch(Rectangle(place, width, 0.5, color=COLOURS["faint"], linewidth=0))
    ticks = [*range(len(chosen)), len(chosen) - 0.15]
    labels = [f"L2 {occupancy.lpids[row]}" for row in chosen]
    axes.set_yticks(ticks, [*labels, "memslots"])
    axes.set_ylim(len(chosen) + 0.3, -0.7)
    axes.set_xlim(start, start + step * occupancy.pages.shape[1])
    axes.xaxis.set_major_locator(
        MultipleLocator(_power_of_two(step * occupancy.pages.shape[1] // TICKS))
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _address(int(value))))
    axes.set_xlabel(
        f"L1 address; a column is {_address(step)}, the strongest: {most} slots with live entries"
    )
    return _svg(figure)


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is not less than ``value``."""
    return 1 << max(0, value - 1).bit_length()


def _address(value: int) -> str:
    """Return the short form of an address or of a size in bytes."""
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if value >= (1 << shift):
            return f"{value / (1 << shift):.4g}{unit}"
    return str(value)


def _bytes(size: str) -> int:
    return int(size[:-1]) << {"K": 10, "M": 20, "G": 30}.get(size[-1], 0)


def _binned(lengths: Mapping[int, int]) -> dict[str, int]:
    """Return the counts by length, in bins of powers of two where there are many lengths."""
    if max(lengths, default=0) <= LENGTHS_SHOWN:
        return {str(n): lengths.get(n, 0) for n in range(1, max(lengths, default=0) + 1)}
    bins: dict[str, int] = {}
    low = 1
    while low <= max(lengths):
        high = 2 * low - 1
        name = str(low) if low == high else f"{low}-{high}"
        bins[name] = sum(count for n, count in lengths.items() if low <= n <= high)
        low = high + 1
    return bins


def _axes(height: float) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure, axes: Axes | None = None) -> str:
    """Return the picture as an SVG element with names of its own and the page's colours."""
    if axes is not None:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # a page holds several pictures, and matplotlib uses the same ids in each
    own = f"p{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{own}', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{own}", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
