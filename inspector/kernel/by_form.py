"""Find by its form the data that a kernel without CONFIG_KALLSYMS_ALL does not name in memory.

The symbol table of such a kernel holds only functions.  Its data is found by
its known contents: the banner and the build ID by their text, VMCOREINFO by a
pointer to it next to its length, and the list of modules as the ring of
``struct module`` in vmalloc space that passes through one place in the
kernel's image.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Set
from typing import NamedTuple

import numpy as np

from inspector import pte
from inspector.errors import BadData, InspectorError, MemoryNotReadable, TargetNotSupported
from inspector.image.elf import NT_GNU_BUILD_ID
from inspector.image.kallsyms import CHUNK, Kallsyms, Window
from inspector.image.vmcoreinfo import LIMIT, facts
from inspector.kernel.host import Pause, not_loaded
from inspector.memory.numbers import U64
from inspector.regions import (
    LINEAR_MAP,
    LINEAR_SIZE,
    OFFSET_MASK,
    VMALLOC,
    VMALLOC_END,
    linear_to_physical,
)
from inspector.structures.modules import MEMORY_LIMIT, module_memory
from inspector.structures.radix import collect_leaves
from inspector.structures.space import KernelSpace

__all__ = ["IMAGE", "Banner", "banner_near", "data_symbols", "modules_head"]

IMAGE = 64
"""Chunks from a kernel's beginning in which its symbol table and its data are searched."""

BANNER_DISTANCE = 8
BANNER_LENGTH = 512
SMALLEST_PAGE = 1 << 12
WORD = 8
TEXT = b"OSRELEASE="
READ_SIZE = 1 << 22
RING_LIMIT = 1 << 16
SHOWN = 3
_BANNER = re.compile(rb"Linux version (\S+) \([^\0]*\n\0")


class Banner(NamedTuple):
    """The linear address of ``linux_banner``, and the release that it names."""

    address: int
    release: str


def banner_near(window: Window, place: int) -> Banner | None:
    """Return the banner in the same read-only data as a symbol table at a physical address."""
    for chunk in range(place // CHUNK, max(-1, place // CHUNK - BANNER_DISTANCE), -1):
        data = window.chunk(chunk) + window.held(chunk + 1)[:BANNER_LENGTH]
        match = _BANNER.search(data)
        if match:
            where = LINEAR_MAP | (chunk * CHUNK + match.start())
            return Banner(where, match[1].decode("ascii", "replace"))
    return None


def data_symbols(window: Window, table: Kallsyms, banner: Banner) -> dict[str, int]:
    """Return the linear addresses of the symbols that VMCOREINFO and the image itself give.

    VMCOREINFO is accepted if it has the banner's release, and the address of
    the symbol table that was found (from 6.0 on) or else that of ``_stext``.

    Raises:
        BadData: there is no VMCOREINFO of this kernel.
    """
    found = {"linux_banner": banner.address}
    begin = linear_to_physical(table.first) // CHUNK
    last = linear_to_physical(table.last) // CHUNK
    # Data lies after the last function.
    likeliest_first: list[int] = [*range(last, begin + IMAGE), *range(begin, last)]
    for chunk in likeliest_first:
        for data, size, text in _vmcoreinfo_in(window, chunk, table.byte_order):
            told = facts(text)
            if told.get("OSRELEASE") != banner.release or not _tells_of(told, table):
                continue
            swapper = _address(told, "swapper_pg_dir")
            if swapper:
                found |= {"vmcoreinfo_data": data, "vmcoreinfo_size": size}
                found["swapper_pg_dir"] = swapper
                notes = _notes(window, table, told.get("BUILD-ID", ""))
                return found | ({"__start_notes": notes} if notes else {})
    raise BadData(
        f"no VMCOREINFO of Linux {banner.release} was found by a pointer to it in the "
        f"{(IMAGE * CHUNK) >> 20} MiB from physical {begin * CHUNK:#x}"
    )


def modules_head(kernel: KernelSpace, first: int, wanted: Set[str], pause: Pause) -> int:
    """Return the address of the kernel's list of modules.

    Args:
        kernel: its address space, with the layout of ``struct module``.
        first: the linear address at which the kernel begins.
        wanted: names of modules, one of which must be on the list.
        pause: gives a block in which reads cause no stops of their own.

    Raises:
        TargetNotSupported: none of them is loaded, or none has this layout.
        MemoryNotReadable: memory is missing where they may lie.
    """
    image = range(first, first + IMAGE * CHUNK)
    offset, size = kernel.profile.struct("module").place("name")
    needles = [name.encode("ascii").ljust(size, b"\0") for name in sorted(wanted)]
    found: list[int] = []
    lost: list[int] = []
    for part in _mapped(kernel):
        lost += [] if part.lost is None else [part.lost]
        for needle in needles:
            at = part.data.find(needle)
            while at >= 0:
                found.append(part.base + at - offset)
                at = part.data.find(needle, at + 1)
    heads: set[int] = set()
    refused: list[str] = []
    with pause():
        for module in found:
            try:
                heads.add(_head(kernel, module, image))
            except InspectorError as error:
                refused.append(str(error))
    if len(heads) == 1:
        return heads.pop()
    if heads:
        shown = " and ".join(f"{head:#x}" for head in sorted(heads))
        raise TargetNotSupported(
            f"two lists of modules have the form of the kernel's, at {shown}; give --kernel and "
            "--modules with the kernel's files"
        )
    names = " or ".join(sorted(wanted))
    if refused:
        raise TargetNotSupported(
            f"the name {names} is in the kernel's vmalloc space, but in no struct module as the "
            f"debug file lays it out ({'; '.join(refused[:SHOWN])}); give --debug-file with the "
            "debug file of the very kvm-hv.ko that is loaded"
        )
    if lost:
        raise MemoryNotReadable(
            lost[0], kernel.page_size, "the kernel's modules may lie there", kernel.name
        )
    raise not_loaded(sorted(wanted), " in its vmalloc space")


def _vmcoreinfo_in(window: Window, chunk: int, byte_order: str) -> Iterator[tuple[int, int, str]]:
    """Yield the addresses in a chunk of a pointer to VMCOREINFO and of its length, and the text."""
    begin = max(0, chunk * CHUNK - WORD)
    # The words of the chunk and the last one before it, because the pair may cross the border.
    words = np.frombuffer(window.read(begin, CHUNK + WORD), dtype=byte_order + "u8")
    words = words.astype(np.uint64)
    inside = words & np.uint64(OFFSET_MASK)
    pointer = (words - np.uint64(LINEAR_MAP) < np.uint64(LINEAR_SIZE)) & (
        inside % np.uint64(SMALLEST_PAGE) == 0
    )
    length = (words > 0) & (words <= LIMIT)
    # vmcoreinfo_data and vmcoreinfo_size are neighbours in either order.  ``rows`` are the words
    # of the pointers, and ``size`` is the step from a pointer to its length.
    for data, size in ((pointer[:-1] & length[1:], 1), (pointer[1:] & length[:-1], -1)):
        rows = np.flatnonzero(data) + (size < 0)
        texts, present = window.memory.read_many(inside[rows], len(TEXT))
        is_text = present & np.all(texts == np.frombuffer(TEXT, np.uint8), axis=1)
        for row in rows[is_text].tolist():
            text = window.memory.read(int(inside[row]), int(words[row + size]))
            here = LINEAR_MAP | (begin + WORD * row)
            yield here, here + WORD * size, text.decode("ascii", "replace")


def _tells_of(told: dict[str, str], table: Kallsyms) -> bool:
    here = _address(told, "kallsyms_token_table")
    if here:
        return here == (LINEAR_MAP | table.place)
    return _address(told, "_stext") in table.find(("_stext",)).get("_stext", ())


def _address(told: dict[str, str], symbol: str) -> int:
    text = told.get(f"SYMBOL({symbol})", "")
    return int(text, 16) if re.fullmatch(r"[0-9a-f]{1,16}", text) else 0


def _notes(window: Window, table: Kallsyms, build_id: str) -> int:
    """Return the linear address of the note with the kernel's build ID, 0 if there is none."""
    if not re.fullmatch(r"([0-9a-f]{2})+", build_id):
        return 0
    data = bytes.fromhex(build_id)
    note = struct.pack(table.byte_order + "III4s", 4, len(data), NT_GNU_BUILD_ID, b"GNU") + data
    here, last = table.place // CHUNK, linear_to_physical(table.last) // CHUNK
    first = linear_to_physical(table.first) // CHUNK
    likeliest_first: list[int] = [*range(here, last + 1), *range(here - 1, first - 1, -1)]
    for chunk in likeliest_first:
        at = window.read(chunk * CHUNK, CHUNK + len(note)).find(note)
        if at >= 0:
            return LINEAR_MAP | (chunk * CHUNK + at)
    return 0


class _Part(NamedTuple):
    """A part of vmalloc space: its address, its contents, and the first address that is missing.

    Pages that cannot be read are zeros, in which no module is found.
    """

    base: int
    data: bytes
    lost: int | None


def _mapped(kernel: KernelSpace) -> Iterator[_Part]:
    """Yield everything in vmalloc space that may hold modules.

    Modules are mapped page by page, with an unmapped page after each.

    Raises:
        MemoryNotReadable: a part of the kernel's page table is not in the target.
    """
    swapper = linear_to_physical(kernel.profile.symbols["swapper_pg_dir"])
    table = collect_leaves(kernel.memory, pte.Root(swapper, pte.PGD_BITS))
    for problem in table.problems:
        where = problem.address | LINEAR_MAP
        if VMALLOC <= where < VMALLOC_END:
            raise MemoryNotReadable(where, kernel.page_size, problem.text, kernel.name)
    pages = table.address | np.uint64(LINEAR_MAP)
    rows = (pages >= VMALLOC) & (pages < VMALLOC_END) & (table.size == kernel.page_size)
    pages = pages[rows]
    # One part for each run of adjacent pages.
    for part in np.split(pages, np.flatnonzero(np.diff(pages) != kernel.page_size) + 1):
        if 0 < part.size * kernel.page_size <= MEMORY_LIMIT:
            yield _contents(kernel, part)


def _contents(kernel: KernelSpace, pages: U64) -> _Part:
    pieces, lost = [], None
    step = READ_SIZE // kernel.page_size
    for begin in range(0, pages.size, step):
        some = pages[begin : begin + step]
        data, present = kernel.read_many(some, kernel.page_size)
        pieces.append(data.tobytes())
        if lost is None and not present.all():
            lost = int(some[int(np.argmin(present))])
    return _Part(int(pages[0]), b"".join(pieces), lost)


def _head(kernel: KernelSpace, module: int, image: range) -> int:
    """Follow the list that a module seems to be on; return its head in the kernel's image.

    Raises:
        BadData: this is no module, or not on such a list.
    """
    if not any(base <= module < base + size for base, size in module_memory(kernel, module)):
        raise BadData(f"the one at {module:#x} does not lie in the memory it says is its own")
    start = module + kernel.profile.struct("module").offset("list")
    heads: list[int] = []
    link, count = start, 0
    while True:
        following = kernel.pointer(link)
        back = kernel.pointer(following + WORD)
        if back != link:
            raise BadData(
                f"the list of the one at {module:#x} goes from {link:#x} to {following:#x}, "
                f"and from there back to {back:#x}"
            )
        if not VMALLOC <= link < VMALLOC_END:
            heads.append(link)
        link, count = following, count + 1
        if link == start:
            break
        if count > RING_LIMIT:
            raise BadData(f"the list of the one at {module:#x} does not lead back to it")
    if len(heads) != 1 or heads[0] not in image:
        raise BadData(
            f"the list of the one at {module:#x} passes through {len(heads)} places outside of "
            "vmalloc space, and not through one in the kernel's image"
        )
    return heads[0]
