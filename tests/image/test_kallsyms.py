"""The kernel's compressed symbol table, in all its forms and damaged."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspector.errors import BadData
from inspector.image import kallsyms
from inspector.image.kallsyms import CHUNK, SYMBOLS_BELOW, Kallsyms, Window, decode, token_tables
from tests.kallsymswriter import Form, write
from tests.memories import of_segments
from tests.profiles import examples

LINEAR = 0xC000_0000_0000_0000
NAMES = ("kvm_vm_list", "page_list", "sys_read", "linux_banner", "a", "Z9", "x.llvm.0123456789")
PLACE = 0x12_3000

FORMS = [
    *(
        Form(values, first, order_bytes, alignment, byte_order)
        for values, first, order_bytes, alignment, byte_order in itertools.product(
            ("base", "percpu", "absolute"), (True, False), (0, 3, 4), (8,), "<>"
        )
    ),
    *(Form("place", False, 3, alignment, order) for alignment in (4, 8) for order in "<>"),
    Form("base", False, 3, 4),
]


def symbols(count: int, extra: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    names = [f"filler_{i}_{'kvm' * (i % 5)}page" for i in range(count - len(NAMES) - len(extra))]
    for i, name in enumerate((*NAMES, *extra)):
        names.insert(i * len(names) // len(NAMES), name)
    return [(name, LINEAR + 0x1000 + 4096 * i) for i, name in enumerate(names)]


def table_of(data: bytes, place: int = PLACE) -> Kallsyms:
    window = Window(of_segments([(place, data)]))
    (tokens,) = token_tables(window, range(4))
    return decode(window, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("count", [1024, 1025])
def test_every_form(form: Form, count: int) -> None:
    known = symbols(count)
    table = table_of(write(known, form, PLACE))
    assert (len(table), table.byte_order) == (count, form.byte_order)
    assert (table.first, table.last) == (known[0][1], known[-1][1])
    expected = {name: [value] for name, value in known if name in NAMES}
    assert table.find((*NAMES, "absent", "linux_bannre")) == expected
    assert table.find([known[-1][0], known[0][0]]) == {
        known[0][0]: [known[0][1]],
        known[-1][0]: [known[-1][1]],
    }


def test_the_function_an_address_lies_in() -> None:
    known = [*symbols(600), ("alias", LINEAR + 0x900000), ("after", LINEAR + 0x900000)]
    known.append(("_end", LINEAR + 0xA00000))
    functions = {"page_list", "sys_read", "alias"}
    table = table_of(write(known, Form(), PLACE, functions))
    places = dict(known)
    for name in ("sys_read", "page_list"):
        assert table.before(places[name]) == (name, places[name])
        assert table.before(places[name] + 0xFFF) == (name, places[name])
        assert table.before(places[name] + 0x1004) == (name, places[name]), "data lies between"
    assert table.before(LINEAR + 0x900004) == ("alias", LINEAR + 0x900000)
    assert table.before(places["sys_read"] + 0x1000 * SYMBOLS_BELOW) is None
    for outside in (0, LINEAR, LINEAR + 0xA00001, 0xC008_0000_0000_0000):
        assert table.before(outside) is None


@pytest.mark.parametrize("length", [126, 127, 128, 255, 256, 500])
def test_long_names_take_two_bytes_for_their_length(length: int) -> None:
    name = "q" * length
    known = symbols(600, (name,))
    assert table_of(write(known, Form(), PLACE)).find([name]) == {name: [dict(known)[name]]}


def test_a_name_with_several_addresses() -> None:
    known = [*symbols(600), ("modules", LINEAR + 0x900000), ("modules", LINEAR + 0x900010)]
    assert table_of(write(known, Form(), PLACE)).find(["modules"]) == {
        "modules": [LINEAR + 0x900000, LINEAR + 0x900010]
    }


@pytest.mark.slow
@settings(max_examples=examples(30))
@given(
    st.lists(st.text("abckvm_lispge0", min_size=1, max_size=60), min_size=520, max_size=700),
    st.sampled_from(FORMS),
    st.integers(1, 600).map(lambda page: page << 12),
)
def test_any_names_anywhere(names: list[str], form: Form, place: int) -> None:
    known = [("_text", LINEAR), *((name, LINEAR + 16 * i) for i, name in enumerate(names))]
    known.append(("_end", LINEAR + (1 << 24)))
    table = table_of(write(known, form, place), place)
    wanted = names[:5]
    assert table.find(wanted) == {
        name: [value for other, value in known if other == name] for name in wanted
    }


@pytest.mark.parametrize("back", [4, 10, 19, 20, 600, 1300])
def test_tables_across_the_border_of_two_chunks(back: int) -> None:
    known = symbols(700)
    digits = write(known, Form()).index(b"0\x001\x002\x003\x00")
    place = CHUNK - digits + back
    data = write(known, Form(), place)
    window = Window(of_segments([(0, bytes(place) + data + bytes(-(place + len(data)) % 4096))]))
    for chunks in (range(3), (1, 0, 2)):
        tokens = next(token_tables(window, chunks))
        assert decode(window, tokens).find(["a"]) == {"a": [dict(known)["a"]]}


BLOB = write(symbols(700), Form(), PLACE)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(0, len(BLOB) - 1), st.integers(0, 255)), min_size=1, max_size=20
    ),
    st.integers(0, len(BLOB)),
)
def test_damage_is_bad_data_or_harmless(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(BLOB)
    for place, value in changes:
        data[place] = value
    for whole in (bytes(data), bytes(data[:cut]) + bytes(len(data) - cut)):
        window = Window(of_segments([(PLACE, whole)]))
        for tokens in token_tables(window, range(4)):
            with contextlib.suppress(BadData):
                decode(window, tokens).find(NAMES)


def test_a_number_too_large_is_not_believed() -> None:
    known = symbols(700)
    for number in (701, 1 << 20, (1 << 32) - 1):
        data = number.to_bytes(4, "little") + BLOB[4:]
        with pytest.raises(BadData, match="names before the tokens"):
            table_of(data)
    assert len(table_of(BLOB)) == len(known)


def test_addresses_that_are_none() -> None:
    at = BLOB.index((LINEAR + 0x1000).to_bytes(8, "little"))
    with pytest.raises(BadData, match="no addresses that make sense"):
        table_of(BLOB[:at] + bytes(8) + BLOB[at + 8 :])


@pytest.mark.slow
def test_digits_alone_are_no_tokens() -> None:
    text = b"".join(b"%d\0" % i for i in range(20)) * 300
    window = Window(of_segments([(0, text + bytes(-len(text) % 4096))]))
    assert not list(token_tables(window, range(2)))
    assert not list(token_tables(Window(of_segments([])), range(64)))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_found_at_one_of_the_first_places(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(symbols(700), form, PLACE)
    monkeypatch.setattr(kallsyms, "PLACES_LIMIT", 4)
    assert len(table_of(data)) == 700
    monkeypatch.setattr(kallsyms, "PLACES_LIMIT", 0)
    with pytest.raises(BadData, match="names before the tokens"):
        table_of(data)


def test_most_places_are_dismissed_before_their_names_are_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every word before the names could be the number of names."""
    rows, calls = kallsyms._rows, itertools.count()

    def counted(*given: Any) -> Any:
        next(calls)
        return rows(*given)

    monkeypatch.setattr(kallsyms, "_rows", counted)
    number = (700).to_bytes(4, "little")
    assert BLOB.startswith(number)
    with pytest.raises(BadData, match="names before the tokens"):
        table_of(number * 2047 + bytes(8) + BLOB[4:])
    assert next(calls) <= 1
