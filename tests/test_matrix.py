"""The table of kernels, machines and sources, whose page also stores its cells."""

from __future__ import annotations

from fixtures.lab import matrix
from fixtures.lab.matrix import BOARDS, LINUX, SOURCES, Expected, Row, merged, page, stored


def column(key: str, board: str, outcome: str, release: str = "6.12.1") -> list[Row]:
    return [Row(key, release, board, source.name, outcome) for source in SOURCES]


def test_the_page_that_is_there_is_read_and_written_the_same() -> None:
    text = matrix.PAGE.read_text()
    rows = merged(stored(text), [])
    assert len(rows) > 100
    assert {row.board for row in rows} <= set(BOARDS)
    assert merged(stored(page(rows)), []) == rows
    assert page(rows).partition("\n## ")[2] == text.partition("\n## ")[2]


def test_new_cells_take_the_place_of_old_ones_and_no_others() -> None:
    old = column("6.12-4k", "powernv9", "old") + column("sid-4k", "pseries", "old", "7.2.1")
    rows = merged(old, column("6.12-4k", LINUX, "new")[:3])
    assert [row for row in rows if row.board != LINUX] == old
    assert merged(stored(page(rows)), []) == rows
    assert "not tried" in page(rows)
    again = merged(rows, column("6.12-4k", "powernv9", "newer"))
    assert {row.outcome for row in again if row.board == "powernv9"} == {"newer"}


def test_cells_of_an_older_release_go() -> None:
    old = column("6.12-4k", "powernv9", "old") + column("6.12-64k", "powernv9", "old")
    rows = merged(old, column("6.12-4k", "pseries", "new", "6.12.2"))
    assert {(row.key, row.board) for row in rows} == {
        ("6.12-4k", "pseries"),
        ("6.12-64k", "powernv9"),
    }


def test_what_is_read_is_compared() -> None:
    words = {1: [2, 3], 4: [5]}
    assert Expected(words).compare(words, 7) == (True, "3 words agree")
    assert Expected(words).compare({1: [3, 2], 4: [5]}, 7) == (False, "1 of 2 slots differ")
    first = Expected(leaves=7)
    assert first.compare(words, 8) == (False, "8 shadow leaves, the kernel prints 7")
    assert first.compare(words, 7) == (True, "3 words, 7 leaves as the kernel prints")
    assert first.compare(words, 7) == (True, "3 words the same")
    assert first.compare({1: [2, 3]}, 7) == (False, "1 of 2 slots differ")
