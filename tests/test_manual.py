"""The manual: its links lead somewhere, and its words are explained where they are first used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.glossary import GLOSSARY, PAGES, TERMS, linked

ROOT = Path(__file__).resolve().parent.parent
ALL = (ROOT / "README.md", *sorted((ROOT / "inspector" / "manual").glob("*.md")))

CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]*)\)")
ELSEWHERE = ("http://", "https://", "mailto:")
ENTRY_LINES = 3


def name(page: Path) -> str:
    return page.name


def anchors(page: Path) -> Iterator[str]:
    """Yield the anchors that a Markdown viewer gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for heading in HEADING.findall(text):
        shown = LINK.sub("", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading))
        yield re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")


def links(page: Path) -> list[str]:
    found = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return [link for link in found if not link.startswith(ELSEWHERE)]


@pytest.mark.parametrize("page", ALL, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}: there is no such file"
        if anchor:
            assert anchor in set(anchors(target)), f"{page.name}: {link}: there is no such heading"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_words_are_linked_where_they_are_first_used(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert linked(text, page) == text, f"{page.name}: run 'python -m fixtures.glossary'"


def test_every_word_of_the_glossary_can_be_linked() -> None:
    entries = re.split(r"^### ", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    words = set(anchors(GLOSSARY))
    assert set(TERMS) <= words
    for entry in entries:
        heading, _, rest = entry.partition("\n")
        lines = [line for line in rest.partition("\n#")[0].splitlines() if line.strip()]
        assert 0 < len(lines) <= ENTRY_LINES, f"{heading}: {len(lines)} lines"
    manual = "\n".join(page.read_text(encoding="utf-8") for page in ALL if page != GLOSSARY)
    manual = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", manual)
    unused = {anchor for anchor, pattern in TERMS.items() if not re.search(pattern, manual)}
    assert unused == set(), "a word that no page uses needs no entry"


def test_a_word_is_linked_once_and_not_in_code() -> None:
    page = ROOT / "inspector" / "manual" / "start.md"
    text = "# A memslot\n\n`memslot` and\n\n    memslot\n\na memslot, a memslot\n"
    once = linked(text, page)
    assert once.endswith("a [memslot](glossary.md#memslot), a memslot\n")
    assert once.count("glossary.md") == 1
    assert linked(once, page) == once
    moved = "a memslot before; " + once
    assert linked(moved, page).startswith("a [memslot](glossary.md#memslot) before; ")
    assert linked(moved, page).count("glossary.md") == 1
