"""The walk over one slot that tests compare with."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from tests.kvm.slotwalk import SlotWord, walk

WORDS = st.integers(0, (1 << 64) - 1)


@given(st.lists(WORDS, max_size=10), st.integers(0, 9), st.sampled_from(("end", "tail", "loop")))
def test_walk_follows_links_and_ends(words: list[int], back: int, ending: str) -> None:
    nodes = [0xC000_0000_0000_0000 + 16 * i for i in range(len(words))]
    last = {"end": 0, "tail": 0x1001, "loop": nodes[back % len(nodes)] if nodes else 0}[ending]
    links = [*nodes, last]
    memory = {node: (links[i + 1], words[i]) for i, node in enumerate(nodes)}
    steps = list(walk(links[0], memory.__getitem__))
    expected = [SlotWord(node, word) for node, word in zip(nodes, words, strict=True)]
    if ending == "tail":
        expected.append(SlotWord(0, 0x1001))
    assert steps == expected


def test_walk_reads_no_further_than_it_is_asked() -> None:
    def read(node: int) -> tuple[int, int]:
        asked.append(node)
        return node + 16, 0

    asked: list[int] = []
    words: Iterator[SlotWord] = walk(16, read)
    next(words)
    assert asked == [16]
