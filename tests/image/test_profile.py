"""Layout profiles: the members that are looked up, and the JSON form."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.synthetic import build
from inspector.errors import BadData, InspectorError, TargetNotSupported
from inspector.image import profile as profiles
from inspector.image.btf import Btf
from inspector.image.profile import (
    OPTIONAL_STRUCTS,
    STABLE,
    STRUCTS,
    SYMBOLS,
    Profile,
    StructLayout,
    layouts,
)
from tests.btfwriter import BtfWriter, MemberOf

PROFILE = build([]).profile
BIG = build([], 1 << 16, ">").profile


@pytest.mark.parametrize("profile", [PROFILE, BIG], ids=["4K little", "64K big"])
def test_round_trip(profile: Profile) -> None:
    assert Profile.from_json(json.dumps(profile.to_json())) == profile
    anchored = replace(profile, anchors={"vm_list": ("halt_poll_ns", -232)})
    assert Profile.from_json(json.dumps(anchored.to_json())) == anchored


def test_members() -> None:
    layout = PROFILE.struct("kvm")
    assert layout.place("arch.radix") == (520, 1)
    assert layout.offset("mm") == 40
    assert "mm" in layout
    assert "nothing" not in layout
    with pytest.raises(TargetNotSupported, match="struct kvm of this kernel has no member nothing"):
        layout.offset("nothing")
    assert (PROFILE.page_shift, BIG.page_shift) == (12, 16)


def damaged(**changes: Any) -> str:
    raw = PROFILE.to_json()
    for key, value in changes.items():
        if value is None:
            del raw[key]
        else:
            raw[key] = value
    return json.dumps(raw)


def without(kind: str, name: str) -> str:
    raw = PROFILE.to_json()
    del raw[kind][name]
    return json.dumps(raw)


def member(place: Any) -> str:
    raw = PROFILE.to_json()
    raw["structs"]["kvm"]["members"]["mm"] = place
    return json.dumps(raw)


def struct(name: str, size: int, **members: list[int]) -> str:
    raw = PROFILE.to_json()
    layout = raw["structs"].setdefault(name, {"members": {}})
    layout["size"] = size
    layout["members"] |= members
    return json.dumps(raw)


def test_a_structure_that_a_profile_lacks() -> None:
    with pytest.raises(TargetNotSupported, match="without struct kernel_symbol"):
        PROFILE.struct("kernel_symbol")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        "\ud800",
        b"\xff\xfe",
        "[" * 100_000,
        *(damaged(**{key: None}) for key in PROFILE.to_json()),
        *(without("symbols", name) for name in SYMBOLS),
        *(without("structs", name) for name in sorted(STRUCTS.keys() - OPTIONAL_STRUCTS)),
        damaged(format=2),
        damaged(format="1"),
        damaged(byte_order="middle"),
        damaged(page_size="4K"),
        damaged(page_size=[]),
        damaged(page_size=1e999),
        damaged(symbols=[]),
        damaged(symbols={**PROFILE.to_json()["symbols"], "modules": 7}),
        damaged(symbols={**PROFILE.to_json()["symbols"], "modules": "-0x10"}),
        damaged(symbols={**PROFILE.to_json()["symbols"], "modules": "0x1" + "0" * 16}),
        damaged(structs=3),
        damaged(structs={**PROFILE.to_json()["structs"], "kvm": []}),
        member([]),
        member([1]),
        member([1e999, 8]),
        member([0, -8]),
        member([-8, 8]),
        member([0, 1 << 40]),
        member([PROFILE.structs["kvm"].size - 4, 8]),
        damaged(release="6.1\ud800"),
        struct("\udfff", size=8),
        member([40, 3]),
        member([40, 0]),
        struct("rmap_nested", size=24, rmap=[12, 8]),
        struct("rmap_nested", size=20),
        struct("rmap_nested", size=1 << 16),
        struct("revmap_entry", size=1 << 16),
        struct("module_memory", size=0),
    ],
)
def test_a_damaged_profile_is_bad_data(text: str | bytes) -> None:
    with pytest.raises(BadData):
        Profile.from_json(text)


@pytest.mark.parametrize("size", [0, 2048, 8192, 1 << 24])
def test_unknown_page_sizes_are_refused(size: int) -> None:
    with pytest.raises(TargetNotSupported, match="pages of"):
        Profile.from_json(damaged(page_size=size))


@pytest.mark.slow
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from(sorted(PROFILE.to_json())),
)
def test_any_value_anywhere(value: Any, key: str) -> None:
    raw = PROFILE.to_json() | {key: value}
    with contextlib.suppress(InspectorError):
        Profile.from_json(json.dumps(raw))


def kernel_btf(leave_out: str = "") -> BtfWriter:
    """Return type information that has every structure with every member, 8 bytes each."""
    w = BtfWriter()
    u64 = w.integer("u64", 8)

    def struct(name: str, paths: Iterable[str], size: int = 880) -> int:
        inner: dict[str, list[str]] = {}
        members: list[MemberOf] = []
        for path in paths:
            first, _, rest = path.partition(".")
            if rest:
                inner.setdefault(first, []).append(rest)
            else:
                members.append((first, u64, 64 * len(members)))
        for first, below in inner.items():
            kind = struct(f"of_{name}_{first}", below)
            members.append((first, kind, 64 * (len(members) + 100)))
        return w.struct(name, size, members)

    for name, paths in STRUCTS.items():
        if name != leave_out:
            struct(name, paths, 2000)
    return w


def test_every_structure_is_looked_up() -> None:
    found = layouts([Btf(kernel_btf().data())])
    assert {name: set(layout.members) for name, layout in found.items()} == {
        name: set(members) for name, members in STRUCTS.items()
    }
    assert all(layout.size == 2000 for layout in found.values())
    assert found["rmap_nested"].place("rmap") == (0, 8)
    assert found["rmap_nested"].place("list.next") == (808, 8)


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_a_structure_that_is_in_no_blob(name: str) -> None:
    blobs = [Btf(kernel_btf(name).data())]
    if name in OPTIONAL_STRUCTS:
        assert name not in layouts(blobs)
        return
    if name in STABLE:
        assert layouts(blobs)[name] == StructLayout(name, *STABLE[name])
        return
    with pytest.raises(TargetNotSupported, match=f"no struct {name};"):
        layouts(blobs)


def test_a_member_that_is_missing_is_left_out() -> None:
    w = kernel_btf("list_head")
    w.struct("list_head", 16, [("previous", 1, 0)])
    assert layouts([Btf(w.data())])["list_head"].members == {}


def test_the_form_is_documented() -> None:
    assert profiles.__doc__ is not None
    for key in PROFILE.to_json():
        assert f'"{key}"' in profiles.__doc__
