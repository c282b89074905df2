"""Type information from DWARF, for kernels built without BTF.

Two compile units of kvm-hv's debug file are used.  book3s_hv_nested.c defines
the structures of KVM.  kvm-hv.mod.c, the unit that every module ends with,
defines ``struct module`` in case the first unit does not.  A module's debug
file is relocatable.  pyelftools would apply its relocations one by one, which
takes seconds, so they are applied here as arrays before pyelftools reads the
file (64-bit ELF V2 ABI, 4.5: ADDR32 and ADDR64).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inspector.errors import BadData, InspectorError, TargetNotSupported
from inspector.image.btf import Member
from inspector.image.elf import build_id_in, headers_of, unpacked

if TYPE_CHECKING:
    from elftools.dwarf.die import DIE

__all__ = ["Dwarf"]

UNIT = "book3s_hv_nested.c"
LAST_UNIT = "kvm-hv.mod.c"
R_PPC64_ADDR32, R_PPC64_ADDR64 = 1, 38
_WIDTHS = {R_PPC64_ADDR32: 4, R_PPC64_ADDR64: 8}
_STRUCTS = ("DW_TAG_structure_type", "DW_TAG_union_type")
_TRANSPARENT = (
    "DW_TAG_typedef",
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_restrict_type",
    "DW_TAG_atomic_type",
)
_NESTING_LIMIT = 32
_POINTER_SIZE = 8


class _Unit:
    """A compile unit and the structures it defines; declarations are skipped."""

    def __init__(self, top: DIE) -> None:
        self.top = top

    @cached_property
    def structs(self) -> dict[str, DIE]:
        found: dict[str, DIE] = {}
        for die in _children(self.top):
            if die.tag in _STRUCTS and "DW_AT_byte_size" in die.attributes:
                name = die.attributes.get("DW_AT_name")
                if name is not None:
                    found.setdefault(_text(name.value), die)
        return found


class Dwarf:
    """The types that kvm-hv's compile units define, with the queries of ``image.btf.Btf``.

    Args:
        path: kvm-hv.ko's debug file, or an unstripped kvm-hv.ko.

    ``build_id`` is the module's GNU build ID in hexadecimal, if it has one.

    Raises:
        BadData: the file is damaged.
        TargetNotSupported: the file holds no DWARF of book3s_hv_nested.c.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reading():
            data = unpacked(path)
            self._units = self._find_units(_relocated(data))
            self.build_id = _build_id(data)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn every exception that pyelftools raises over a damaged file into BadData."""
        try:
            yield
        except InspectorError:
            raise
        except Exception as error:
            raise BadData(f"{self._path} is not a usable debug file: {error!r}") from error

    def _find_units(self, data: bytes) -> list[_Unit]:
        elf = headers_of(data)
        found: dict[str, _Unit] = {}
        if elf.has_dwarf_info():
            info = elf.get_dwarf_info(relocate_dwarf_sections=False)
            for unit in info.iter_CUs():
                top = unit.get_top_DIE()
                name = top.attributes.get("DW_AT_name")
                base = _text(name.value).rpartition("/")[2] if name is not None else ""
                if base in (UNIT, LAST_UNIT):
                    found.setdefault(base, _Unit(top))
        if UNIT not in found:
            raise TargetNotSupported(
                f"{self._path} holds no DWARF of {UNIT}; give the debug file of kvm-hv.ko"
            )
        return [found[name] for name in (UNIT, LAST_UNIT) if name in found]

    def find_struct(self, name: str) -> int | None:
        """Return the offset of the structure's definition, None if there is none."""
        with self._reading():
            for unit in self._units:
                die = unit.structs.get(name)
                if die is not None:
                    return int(die.offset)
        return None

    def size_of(self, type_id: int) -> int:
        """Return the size in bytes of a type."""
        with self._reading():
            return self._size(self._die(type_id), 0)

    def member(self, type_id: int, path: str) -> Member | None:
        """Find a member by a dotted path; members of anonymous members count as direct ones."""
        current = Member(0, self.size_of(type_id), type_id)
        with self._reading():
            for name in path.split("."):
                found = self._direct_member(self._die(current.type_id), name, 0)
                if found is None:
                    return None
                current = Member(current.offset + found.offset, found.size, found.type_id)
        return current

    def _die(self, offset: int) -> DIE:
        return self._units[0].top.dwarfinfo.get_DIE_from_refaddr(offset)

    def _resolved(self, die: DIE) -> DIE:
        for _ in range(_NESTING_LIMIT):
            if die.tag not in _TRANSPARENT:
                return die
            die = _type_of(die)
        raise BadData(f"{self._path}: the type at {die.offset:#x} is a typedef of itself")

    def _size(self, die: DIE, depth: int) -> int:
        die = self._resolved(die)
        if die.tag == "DW_TAG_pointer_type":
            return _POINTER_SIZE
        if die.tag == "DW_TAG_array_type":
            if depth > _NESTING_LIMIT:
                raise BadData(f"{self._path}: the array at {die.offset:#x} is nested in itself")
            length = 1
            for child in _children(die):
                if child.tag == "DW_TAG_subrange_type":
                    length *= _subrange(child)
            return length * self._size(_type_of(die), depth + 1)
        size = die.attributes.get("DW_AT_byte_size")
        return 0 if size is None else int(size.value)

    def _direct_member(self, die: DIE, name: str, depth: int) -> Member | None:
        die = self._resolved(die)
        if die.tag not in _STRUCTS or depth > _NESTING_LIMIT:
            return None
        for child in _children(die):
            if child.tag != "DW_TAG_member":
                continue
            target = _type_of(child)
            given = child.attributes.get("DW_AT_name")
            place = child.attributes.get("DW_AT_data_member_location")
            offset = 0 if place is None else int(place.value)
            if given is not None and _text(given.value) == name:
                return Member(offset, self._size(target, 0), int(target.offset))
            if given is None:
                inner = self._direct_member(target, name, depth + 1)
                if inner is not None:
                    return Member(offset + inner.offset, inner.size, inner.type_id)
        return None


def _children(die: DIE) -> Iterator[DIE]:
    """Yield the children of an entry.

    pyelftools follows sibling references without a check, so those of a
    damaged file could lead back and never end.

    Raises:
        BadData: a child lies before the one that leads to it.
    """
    last = die.offset
    for child in die.iter_children():
        if child.offset <= last:
            raise BadData(f"the entry at {last:#x} is followed by the one at {child.offset:#x}")
        last = child.offset
        yield child


def _type_of(die: DIE) -> DIE:
    return die.get_DIE_from_attribute("DW_AT_type")


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _subrange(die: DIE) -> int:
    count = die.attributes.get("DW_AT_count")
    if count is not None:
        return int(count.value)
    bound = die.attributes.get("DW_AT_upper_bound")
    return 0 if bound is None else int(bound.value) + 1


def _relocated(data: bytes) -> bytes:
    """Return an ELF file with the relocations of its debug sections applied."""
    elf = headers_of(data)
    if elf.header["e_type"] != "ET_REL":
        return data
    order = "<" if elf.little_endian else ">"
    symtab = elf.get_section_by_name(".symtab")
    if symtab is None:
        return data
    symbol = np.dtype([("skip", "V8"), ("value", order + "u8"), ("size", order + "u8")])
    values = np.frombuffer(_section(data, symtab), dtype=symbol)["value"]
    rela = np.dtype([("offset", order + "u8"), ("info", order + "u8"), ("addend", order + "i8")])
    patched = np.frombuffer(data, dtype=np.uint8).copy()
    for section in elf.iter_sections("SHT_RELA"):
        if not section.name.startswith(".rela.debug"):
            continue
        target = elf.get_section(section["sh_info"])
        entries = np.frombuffer(_section(data, section), dtype=rela)
        kind = entries["info"] & 0xFFFFFFFF
        index = entries["info"] >> np.uint64(32)
        value = values[index] + entries["addend"].astype(np.uint64)
        for code, width in _WIDTHS.items():
            # One row per relocation of this kind: all bytes of all places are patched at once.
            rows = kind == code
            place = entries["offset"][rows].astype(np.int64)
            if place.size and int(place.max()) + width > target["sh_size"]:
                raise ValueError(f"a relocation points past the end of section {target.name}")
            piece = value[rows].astype(f"{order}u{width}").view(np.uint8).reshape(-1, width)
            patched[target["sh_offset"] + place[:, None] + np.arange(width)] = piece
    return patched.tobytes()


def _build_id(data: bytes) -> str:
    elf = headers_of(data)
    section = elf.get_section_by_name(".note.gnu.build-id")
    if section is None:
        return ""
    return build_id_in(_section(data, section), "<" if elf.little_endian else ">")


def _section(data: bytes, section: object) -> bytes:
    begin, size = section["sh_offset"], section["sh_size"]  # type: ignore[index]
    return data[begin : begin + size]
