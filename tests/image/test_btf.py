"""Type information, from blobs written by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inspector.errors import BadData
from inspector.image import btf
from inspector.image.btf import Btf, Member
from tests.btfwriter import BtfWriter

PATHS = ("a", "lock", "inner.b", "b", "bits", "array", "anon", "deep", "list.next", "nothing.b")


def vmlinux(order: str = "<") -> BtfWriter:
    """Return a blob with types of every kind."""
    w = BtfWriter(order)
    u32 = w.integer("unsigned int", 4)
    u64 = w.integer("unsigned long", 8)
    alias = w.typedef("u64", w.add(btf.CONST, "", w.add(btf.VOLATILE, "", u64)))
    node = w.struct("llist_node", 8, [("next", w.pointer(0), 0)])
    inner = w.struct("inner", 16, [("a", u32, 0), ("b", alias, 64)])
    union = w.struct("", 8, [("anon", u64, 0), ("deep", u32, 0)], kind=btf.UNION)
    holder = w.struct("", 8, [("", union, 0)])
    w.add(btf.ENUM, "colour", 4, (w.string("red"), 0), 1)
    w.add(btf.FUNC_PROTO, "", 0, (0, u32, 0, u64), 2)
    w.add(12, "function", w.count)
    w.add(btf.VAR, "jiffies", u64, (0,))
    w.add(btf.DATASEC, ".data", 8, (w.count, 0, 8), 1)
    w.add(btf.FLOAT, "double", 8)
    w.add(btf.DECL_TAG, "tag", u32, (0,))
    w.add(btf.ENUM64, "big", 8, (w.string("huge"), 0, 1), 1)
    w.add(7, "forward", 0)
    array = w.array(w.array(alias, 3), 5)
    w.struct(
        "kvm",
        512,
        [
            ("a", u32, 0),
            ("lock", w.typedef("spinlock_t", inner), 64),
            ("inner", inner, 192),
            ("array", array, 320),
            ("list", w.add(btf.TYPE_TAG, "rcu", node), 1280),
            ("", holder, 1344),
        ],
    )
    w.struct("flags", 8, [("x", u32, 3 << 24), ("bits", u32, (5 << 24) | 35)], flag=1)
    return w


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("path", "offset", "size"),
    [
        ("a", 0, 4),
        ("lock", 8, 16),
        ("lock.b", 16, 8),
        ("inner", 24, 16),
        ("inner.b", 32, 8),
        ("array", 40, 120),
        ("list", 160, 8),
        ("list.next", 160, 8),
        ("anon", 168, 8),
        ("deep", 168, 4),
    ],
)
def test_members(order: str, path: str, offset: int, size: int) -> None:
    blob = Btf(vmlinux(order).data())
    kvm = blob.find_struct("kvm")
    assert kvm is not None
    member = blob.member(kvm, path)
    assert member is not None
    assert member[:2] == (offset, size)
    assert blob.size_of(kvm) == 512


@pytest.mark.parametrize("path", ["b", "inner.c", "a.b", "nothing.b", "array.a", "kvm"])
def test_members_that_are_not_there(path: str) -> None:
    blob = Btf(vmlinux().data())
    kvm = blob.find_struct("kvm")
    assert kvm is not None
    assert blob.member(kvm, path) is None


def test_bit_fields_have_the_byte_they_begin_in() -> None:
    blob = Btf(vmlinux().data())
    flags = blob.find_struct("flags")
    assert flags is not None
    assert blob.member(flags, "x") == Member(0, 4, 1)
    assert blob.member(flags, "bits") == Member(4, 4, 1)


@pytest.mark.parametrize("name", ["vm", "kv", "kvm_", "colour", "u64", "red", "nothing", "forward"])
def test_only_structures_of_the_whole_name_are_found(name: str) -> None:
    assert Btf(vmlinux().data()).find_struct(name) is None


def split() -> tuple[Btf, Btf]:
    base = vmlinux()
    module = base.split()
    holder = module.struct(
        "kvm_nested_guest", 96, [("mine", module.integer("u7", 2), 0), ("l1", base.count - 1, 64)]
    )
    module.struct("kvm", 8, [("shadowing", holder, 0)])
    blob = Btf(base.data())
    return blob, Btf(module.data(), blob)


def test_a_split_blob_goes_on_where_its_base_ends() -> None:
    base, module = split()
    assert module.type_end == base.type_end + 3
    guest = module.find_struct("kvm_nested_guest")
    assert guest is not None
    assert guest >= base.type_end
    assert base.find_struct("kvm_nested_guest") is None
    assert module.member(guest, "mine") == Member(0, 2, base.type_end)
    inside = module.member(guest, "l1.inner.b")
    assert inside is not None
    assert inside[:2] == (8 + 32, 8)


def test_the_more_specific_blob_is_asked_first() -> None:
    base, module = split()
    assert module.find_struct("inner") == base.find_struct("inner") is not None
    own = module.find_struct("kvm")
    assert own is not None
    assert module.size_of(own) == 8
    assert module.member(own, "shadowing.mine") is not None


def test_a_typedef_of_itself_is_damage() -> None:
    w = BtfWriter()
    w.typedef("loop", 1)
    with pytest.raises(BadData, match="typedef of itself"):
        Btf(w.data()).size_of(1)


def test_an_array_of_itself_is_damage() -> None:
    w = BtfWriter()
    w.array(1, 2)
    with pytest.raises(BadData, match="nested in itself"):
        Btf(w.data()).size_of(1)


def test_a_structure_that_holds_itself_has_no_such_member() -> None:
    w = BtfWriter()
    w.struct("loop", 8, [("", 1, 0), ("", 1, 0)])
    blob = Btf(w.data())
    assert blob.member(1, "x") is None


def test_a_type_that_does_not_exist_is_damage() -> None:
    w = BtfWriter()
    w.struct("s", 8, [("a", 77, 0)])
    blob = Btf(w.data())
    with pytest.raises(BadData, match="type 77 does not exist"):
        blob.member(1, "a")


def test_a_blob_without_types_knows_nothing() -> None:
    blob = Btf(BtfWriter().data())
    assert blob.type_end == 1
    assert blob.find_struct("kvm") is None


def ask(data: bytes, base: Btf | None = None) -> None:
    """Make all the queries that a profile makes."""
    blob = Btf(data, base)
    for name in ("kvm", "inner", "llist_node", "flags", "kvm_nested_guest"):
        found = blob.find_struct(name)
        if found is not None:
            blob.size_of(found)
            for path in PATHS:
                blob.member(found, path)


WHOLE = vmlinux().data()


def test_every_truncation_is_bad_data() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(BadData):
            ask(WHOLE[:length])


@pytest.mark.slow
@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=4))
@example(0, b"\0")
@example(4, b"\xff\xff\xff\x7f")
@example(12, struct.pack("<I", len(WHOLE)))
def test_changed_bytes_raise_bad_data_or_nothing(position: int, change: bytes) -> None:
    data = WHOLE[:position] + change + WHOLE[position + len(change) :]
    try:
        ask(data)
        ask(split_data(), Btf(data))
    except BadData:
        pass


def split_data() -> bytes:
    module = vmlinux().split()
    module.struct("kvm_nested_guest", 96, [("b", 5, 0), ("", 6, 64), ("", 7, 64)])
    return module.data()


@given(st.binary(max_size=120))
def test_anything_behind_the_magic_number(rest: bytes) -> None:
    for magic in (b"\x9f\xeb", b"\xeb\x9f"):
        try:
            ask(magic + b"\1\0" + struct.pack("<I", 24) + rest)
        except BadData:
            continue


@pytest.mark.parametrize("data", [b"", b"\x9f", b"ELF", bytes(24)])
def test_what_is_not_btf_is_refused(data: bytes) -> None:
    with pytest.raises(BadData, match="magic number"):
        Btf(data)
