"""LZO1X: every kind of code, and an error for all data that are not a stream."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inspector.dumps.lzo import LzoError, decompress
from tests.dumps.kdumpwriter import lzo_compress

END = b"\x11\0\0"
LIMIT = 1 << 16
LONG = b"pqr" + bytes(2049)


def repetitive(seed: int, size: int) -> bytes:
    """Return data with matches at all distances."""
    source = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        if out and source.random() < 0.6:
            distance = source.choice((1, 2, 3, 5, 8, 100, 2049, 3000, 16385, 20000, 40000))
            length = source.choice((3, 4, 8, 9, 33, 34, 300, 900))
            if distance <= len(out):
                for _ in range(length):
                    out.append(out[-distance])
                continue
        out += source.randbytes(source.choice((1, 2, 3, 4, 18, 19, 273, 274, 600)))
    return bytes(out[:size])


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4, 238, 239, 4096, 65536])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_compressed_comes_back(seed: int, size: int) -> None:
    data = repetitive(seed, size)
    assert decompress(lzo_compress(data), size) == data


@given(st.binary(min_size=1, max_size=600))
@example(bytes(600))
def test_any_data_come_back(data: bytes) -> None:
    assert decompress(lzo_compress(data), len(data)) == data


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (END, b""),
        # three literals, then a match of two right after them
        (bytes([17 + 3]) + b"abc" + bytes([2 << 2, 0]) + END, b"abcab"),
        # the same with a literal after the match
        (bytes([17 + 3]) + b"abc" + bytes([(2 << 2) | 1, 0]) + b"z" + END, b"abcabz"),
        # a run of 2052 literals, then a match of three 2051 bytes back
        (
            bytes([0, *bytes(7), 2052 - 18 - 7 * 255]) + LONG + bytes([2 << 2, 0]) + END,
            LONG + b"qr\0",
        ),
    ],
)
def test_codes_that_the_writer_does_not_use(stream: bytes, expected: bytes) -> None:
    assert decompress(stream, LIMIT) == expected


def test_every_truncation_is_noticed() -> None:
    stream = lzo_compress(repetitive(1, 3000))
    for length in range(len(stream)):
        with pytest.raises(LzoError):
            decompress(stream[:length], LIMIT)


def test_what_follows_the_end_is_noticed() -> None:
    with pytest.raises(LzoError, match="1 bytes follow"):
        decompress(lzo_compress(b"data") + b"x", LIMIT)


def test_the_limit_holds() -> None:
    stream = lzo_compress(bytes(5000))
    for limit in (0, 1, 4096, 4999):
        with pytest.raises(LzoError, match="more than"):
            decompress(stream, limit)
    with pytest.raises(LzoError, match="more than"):
        decompress(bytes([17 + 200]) + bytes(200) + END, 100)


@given(st.binary(max_size=80))
def test_anything_is_data_or_an_error(stream: bytes) -> None:
    with contextlib.suppress(LzoError):
        assert len(decompress(stream, 4096)) <= 4096


@pytest.mark.slow
@given(st.integers(0, 400), st.integers(1, 255))
def test_a_changed_byte_is_data_or_an_error(position: int, change: int) -> None:
    stream = bytearray(lzo_compress(repetitive(2, 2000)))
    stream[position % len(stream)] ^= change
    with contextlib.suppress(LzoError):
        assert len(decompress(bytes(stream), 4096)) <= 4096
