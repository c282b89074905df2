"""The bits of a hash guest's rmap word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector import hash_encoding
from inspector.hash_encoding import HashWord

ALL_BITS = (1 << 64) - 1
INDICES = st.none() | st.integers(0, (1 << 32) - 1)


@given(INDICES, st.booleans(), st.booleans(), st.booleans())
def test_what_is_encoded_is_decoded(
    index: int | None, referenced: bool, changed: bool, locked: bool
) -> None:
    word = hash_encoding.encode(HashWord(index, referenced, changed, locked))
    assert word == (
        2**56
        + (0 if index is None else 2**32 + index)
        + referenced * 2**40
        + changed * 2**39
        + locked * 2**43
    )
    assert hash_encoding.decode(word) == HashWord(index, referenced, changed, locked)
    assert hash_encoding.problems(word) == []


@given(st.integers(0, ALL_BITS))
def test_decoding_ignores_what_the_kernel_ignores(word: int) -> None:
    known = hash_encoding.encode(hash_encoding.decode(word))
    ignored = hash_encoding.RESERVED_MASK | hash_encoding.TYPE_MASK
    if not word & hash_encoding.PRESENT:
        ignored |= hash_encoding.INDEX_MASK
    assert (known & ~hash_encoding.TYPE_MASK) == (word & ~ignored)


def test_the_masks_share_out_all_64_bits() -> None:
    masks = [
        hash_encoding.TYPE_MASK,
        hash_encoding.LOCKED,
        hash_encoding.REFERENCED,
        hash_encoding.CHANGED,
        hash_encoding.PRESENT,
        hash_encoding.INDEX_MASK,
        hash_encoding.RESERVED_MASK,
    ]
    assert sum(masks) == ALL_BITS
    assert [mask.bit_count() for mask in masks] == [8, 1, 1, 1, 1, 32, 20]
    assert (hash_encoding.TYPE_HPT & hash_encoding.TYPE_MASK) == hash_encoding.TYPE_HPT


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_belongs_to_one_field(bit: int) -> None:
    word = hash_encoding.TYPE_HPT ^ (1 << bit)
    found = hash_encoding.decode(word)
    assert found.index == (0 if bit == 32 else None)
    assert (found.referenced, found.changed, found.locked) == (bit == 40, bit == 39, bit == 43)
    assert bool(hash_encoding.problems(word)) == (bit not in (32, 39, 40, 43, 56))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        (0x0100_0200_0000_0000, "reserved bits 0x20000000000"),
        (0x0000_0001_0000_0005, "the type is 0x00"),
        (0xC000_0001_0000_0005, "the type is 0xc0"),
        (0x0100_0000_0000_0005, "HPT index 0x5 but is not present"),
    ],
)
def test_problems_name_what_is_wrong(word: int, text: str) -> None:
    (problem,) = hash_encoding.problems(word)
    assert text in problem


def test_a_word_that_is_only_locked_is_on_its_way() -> None:
    assert hash_encoding.problems(hash_encoding.LOCKED) == []


@pytest.mark.parametrize("index", [-1, 1 << 32])
def test_what_does_not_fit_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        hash_encoding.encode(HashWord(index))
