"""Types from DWARF, on an object file made from ``data/book3s_hv_nested.c``."""

from __future__ import annotations

import lzma
import random
from pathlib import Path

import pytest

from inspector.errors import BadData, InspectorError, TargetNotSupported
from inspector.image.dwarf import Dwarf

OBJECT = Path(__file__).parent / "data" / "book3s_hv_nested.o.xz"
WHOLE = OBJECT.with_name("kvm-hv.o.xz")
DAMAGES = 150


def _place(types: Dwarf, path: str) -> tuple[int, int] | None:
    outer = types.find_struct("outer")
    assert outer is not None
    member = types.member(outer, path)
    return None if member is None else (member.offset, member.size)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lock", (0, 4)),
        ("lock.slock", (0, 4)),
        ("node", (8, 32)),
        ("first", (8, 8)),
        ("second", (16, 1)),
        ("inner.deep", (40, 2)),
        ("inner.name", (42, 15)),
        ("pointer", (64, 8)),
        ("function", (72, 8)),
        ("missing", None),
        ("pointer.next", None),
    ],
)
def test_members(path: str, expected: tuple[int, int] | None) -> None:
    assert _place(Dwarf(OBJECT), path) == expected


def test_structures() -> None:
    types = Dwarf(OBJECT)
    outer = types.find_struct("outer")
    assert outer is not None
    assert types.size_of(outer) == 88
    assert types.find_struct("forward") is None
    assert types.find_struct("nothing") is None


def test_what_one_unit_lacks_is_taken_from_the_last() -> None:
    types = Dwarf(WHOLE)
    module = types.find_struct("module")
    assert module is not None
    assert Dwarf(OBJECT).find_struct("module") is None
    assert types.size_of(module) == 16
    place = types.member(module, "list.another")
    assert place is not None
    assert (place.offset, place.size) == (8, 8)
    assert _place(types, "inner.name") == (42, 15)


def test_the_unit_of_nested_guests_goes_first() -> None:
    types = Dwarf(WHOLE)
    found = types.find_struct("list")
    assert found is not None
    assert types.size_of(found) == 16


def test_another_compile_unit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.o"
    data = lzma.decompress(OBJECT.read_bytes())
    path.write_bytes(data.replace(b"book3s_hv_nested.c", b"book3s_hv_missing."))
    with pytest.raises(TargetNotSupported, match="debug file of kvm-hv"):
        Dwarf(path)


@pytest.mark.slow
def test_damaged_files_are_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "damaged.o"
    whole = lzma.decompress(OBJECT.read_bytes())
    chance = random.Random(1)
    refused = 0
    for _ in range(DAMAGES):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]))
        try:
            types = Dwarf(path)
            outer = types.find_struct("outer")
            if outer is not None:
                types.member(outer, "inner.name")
        except InspectorError:
            refused += 1
    assert refused > DAMAGES // 4


def test_an_entry_that_is_its_own_sibling(tmp_path: Path) -> None:
    data = bytearray(lzma.decompress(WHOLE.read_bytes()))
    assert data[0x223] == 0xF6, "the sibling of the entry at 0xe6"
    data[0x223] = 0xE6
    path = tmp_path / "circle.o"
    path.write_bytes(bytes(data))
    with pytest.raises(BadData, match="0xe6 is followed by the one at 0xe6"):
        Dwarf(path).find_struct("module")


def test_no_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("no ELF")
    with pytest.raises(BadData):
        Dwarf(path)
