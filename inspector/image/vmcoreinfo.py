"""VMCOREINFO: the text in which a kernel describes itself for readers of its memory."""

from __future__ import annotations

from collections.abc import Mapping

from inspector.errors import BadData
from inspector.memory.interface import AddressSpace
from inspector.memory.numbers import integer
from inspector.regions import linear_to_physical

__all__ = ["PAGE_SIZES", "facts", "read_vmcoreinfo", "release_and_page_size"]

LIMIT = 1 << 16
PAGE_SIZES = (1 << 12, 1 << 16)
"""The page sizes of kernels that are known, in bytes."""


def read_vmcoreinfo(memory: AddressSpace, symbols: Mapping[str, int], byte_order: str) -> str:
    """Return the text in memory, or an empty one for a kernel that keeps none.

    Raises:
        BadData: the kernel has not written it, or its length is damaged.
        MemoryNotReadable: the text, or a word that leads to it, is missing.
    """
    if not {"vmcoreinfo_data", "vmcoreinfo_size"} <= symbols.keys():
        return ""

    def word(name: str) -> int:
        return integer(memory.read(linear_to_physical(symbols[name]), 8), byte_order)

    address, length = word("vmcoreinfo_data"), word("vmcoreinfo_size")
    if not 0 < length <= LIMIT:
        raise BadData(
            f"the kernel's VMCOREINFO at {address:#x} has a length of {length} bytes; "
            "the machine may not have booted far enough"
        )
    return memory.read(linear_to_physical(address), length).decode("ascii", "replace")


def facts(text: str) -> dict[str, str]:
    """Return the lines of the form KEY=VALUE."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def release_and_page_size(text: str) -> tuple[str, int]:
    """Return the kernel's release and its page size in bytes.

    Raises:
        BadData: the text is missing one of them.
    """
    known = facts(text)
    try:
        release, page_size = known["OSRELEASE"], int(known["PAGESIZE"])
    except (KeyError, ValueError) as error:
        raise BadData(
            f"the kernel's VMCOREINFO in memory has no usable {error}; "
            "the machine may not have booted far enough"
        ) from error
    if page_size not in PAGE_SIZES:
        raise BadData(f"the kernel's VMCOREINFO in memory has pages of {page_size} bytes")
    return release, page_size
