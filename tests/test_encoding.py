"""The bits of an rmap word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector import encoding
from inspector.encoding import SlotForm

ALL_BITS = (1 << 64) - 1
LPIDS = st.integers(0, 4095)
PAGES = st.integers(0, (1 << 40) - 1)
WORDS = st.integers(0, ALL_BITS)


@given(LPIDS, PAGES, st.booleans())
def test_what_is_encoded_is_decoded(lpid: int, page: int, single: bool) -> None:
    word = encoding.encode(lpid, page << 12, single=single)
    assert word == lpid * 2**52 + page * 2**12 + single
    assert encoding.decode(word) == (lpid, page << 12)
    assert encoding.lpid_of(word) == lpid
    assert encoding.gpa_of(word) == (page << 12)
    assert bool(encoding.is_single(word)) is single
    assert encoding.problems(word, in_node=not single) == []


@given(WORDS)
def test_decoding_ignores_what_the_kernel_ignores(word: int) -> None:
    lpid, gpa = encoding.decode(word)
    assert encoding.encode(lpid, gpa) == encoding.identity(word)


def test_the_masks_share_out_all_64_bits() -> None:
    masks = [
        encoding.LPID_MASK,
        encoding.GPA_MASK,
        encoding.RESERVED_MASK,
        encoding.SINGLE_ENTRY,
    ]
    assert sum(masks) == ALL_BITS
    assert [mask.bit_count() for mask in masks] == [12, 40, 11, 1]
    assert encoding.IDENTITY_MASK == (encoding.LPID_MASK | encoding.GPA_MASK)
    assert encoding.MAX_LPID == 4095


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_belongs_to_one_field(bit: int) -> None:
    word = 1 << bit
    assert encoding.lpid_of(word) == (1 << (bit - 52) if bit >= 52 else 0)
    assert encoding.gpa_of(word) == (word if 12 <= bit < 52 else 0)
    assert encoding.is_single(word) == (bit == 0)
    reserved = any("reserved" in text for text in encoding.problems(word, in_node=False))
    assert reserved == (1 <= bit < 12)


@pytest.mark.parametrize(
    ("lpid", "gpa"), [(-1, 0), (4096, 0), (0, 1), (0, 0x800), (0, 1 << 52), (0, -4096)]
)
def test_what_does_not_fit_is_refused(lpid: int, gpa: int) -> None:
    with pytest.raises(ValueError, match=r"does not fit|not a 4 KiB aligned"):
        encoding.encode(lpid, gpa)


@given(st.lists(WORDS, max_size=20))
def test_arrays_give_what_integers_give(words: list[int]) -> None:
    array = np.array(words, dtype=np.uint64)
    assert encoding.lpid_of(array).tolist() == [encoding.lpid_of(word) for word in words]
    assert encoding.gpa_of(array).tolist() == [encoding.gpa_of(word) for word in words]
    assert encoding.identity(array).tolist() == [encoding.identity(word) for word in words]
    assert encoding.is_single(array).tolist() == [encoding.is_single(word) for word in words]
    assert encoding.lpid_of(array).dtype == np.uint64


@pytest.mark.parametrize(
    ("word", "form"),
    [
        (0, SlotForm.EMPTY),
        (1, SlotForm.SINGLE),
        (0xFFF0_0000_0000_1001, SlotForm.SINGLE),
        (0xC000_0000_0123_4560, SlotForm.LIST),
        (2, SlotForm.LIST),
    ],
)
def test_forms(word: int, form: SlotForm) -> None:
    assert encoding.form_of(word) is form


@given(WORDS, st.booleans())
def test_problems_name_what_is_wrong(word: int, in_node: bool) -> None:
    found = encoding.problems(word, in_node=in_node)
    reserved = (word >> 1) & 0x7FF
    assert len(found) == (reserved != 0) + ((word & 1) == in_node)
    assert not reserved or f"{reserved << 1:#x}" in found[0]
