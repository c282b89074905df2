"""Frames of the remote protocol: an encoded packet is decoded again, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.live.framing import (
    CONTENT_LIMIT,
    Decoder,
    Malformed,
    Sign,
    checksum,
    decoded,
    encoded,
)

PIECES = st.lists(st.binary(max_size=64) | st.sampled_from([b"$", b"#", b"}", b"*", b"\3"]))
CONTENTS = PIECES.map(b"".join)


def taken(data: bytes, interrupts: bool = False) -> list[bytes | Sign]:
    decoder = Decoder(interrupts)
    decoder.feed(data)
    return list(iter(decoder.next, None))


@given(CONTENTS)
def test_the_checksum_is_the_sum_of_the_bytes(content: bytes) -> None:
    content *= 40
    assert checksum(content) == (sum(content) & 0xFF)


@given(st.lists(CONTENTS, max_size=4), st.integers(1, 40))
def test_what_is_encoded_comes_out_again_however_it_is_cut(
    contents: list[bytes], length: int
) -> None:
    data = b"".join(b"+" + encoded(content) for content in contents)
    decoder = Decoder(interrupts=False)
    found = []
    for begin in range(0, len(data), length):
        decoder.feed(data[begin : begin + length])
        found += list(iter(decoder.next, None))
    assert found == contents


@given(CONTENTS)
def test_no_byte_with_a_meaning_is_left_in_a_packet(content: bytes) -> None:
    inside = encoded(content)[1:-3]
    assert not any(byte in inside for byte in b"$#*")


@given(st.binary(max_size=200))
def test_any_bytes_are_packets_or_malformed(data: bytes) -> None:
    for wire in (data, b"$" + data, b"$" + data + b"#00"):
        try:
            found = taken(wire)
        except Malformed:
            continue
        for packet in found:
            assert isinstance(packet, Sign) or taken(encoded(packet)) == [packet]


def test_runs_are_written_out() -> None:
    assert decoded(b"0* ") == b"0000"
    assert decoded(b"a}\x03*!b") == b"a#####b"
    with pytest.raises(Malformed, match="more than"):
        decoded(b"0" + b"*~" * CONTENT_LIMIT)


@pytest.mark.parametrize("wire", [b"*!", b"0*", b"0*\x1f", b"}", b"0}"])
def test_runs_and_escapes_that_are_not_whole(wire: bytes) -> None:
    with pytest.raises(Malformed):
        decoded(wire)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"$OK#00", "checksum 9a"),
        (b"$OK#zz", "checksum 9a"),
        (b"$Y_$$Fopen#00", "begins inside a packet"),
        (b"%Stop:T05#00", "a notification"),
        (b"OK", "byte 0x4f"),
        (b"\3", "byte 0x03"),
        (b"+\n", "byte 0x0a"),
        (b"+" * 5000, "acknowledgements without end"),
        (b"$" + b"0" * (CONTENT_LIMIT + 1), "packet of more than"),
        (b"$" + b"0" * (CONTENT_LIMIT + 1) + b"#00", "packet of more than"),
    ],
)
def test_what_is_no_packet(data: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        taken(data)


def test_signs_stand_between_packets() -> None:
    assert taken(b"+\3+$g#67-", interrupts=True) == [Sign.INTERRUPT, b"g", Sign.REPEAT]
    assert taken(b"$a\3#%02x" % checksum(b"a\3"), interrupts=True) == [b"a\3"]


def test_a_packet_that_is_not_whole_is_waited_for() -> None:
    decoder = Decoder(interrupts=False)
    for byte in b"$OK#9":
        decoder.feed(bytes((byte,)))
        assert decoder.next() is None
    decoder.feed(b"a")
    assert decoder.next() == b"OK"
    assert decoder.next() is None
