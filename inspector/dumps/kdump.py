"""kdump-compressed dumps: makedumpfile's, and QEMU's ``dump-guest-memory -z/-l/-s``.

The file has a header, a sub header, two bitmaps with a bit for each page of
the physical address space (which pages are memory; which are in the dump), one
descriptor for each page in the dump, and the pages, each compressed on its
own.  To find the descriptor of a page, the reader counts the bits before the
page's own bit.  It keeps a count for each run of the bitmap that a read has
reached: opening a dump reads its headers, and a read touches only the parts
that it needs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from inspector.dumps import compression
from inspector.dumps.compression import PageDamaged
from inspector.dumps.elfcore import Note, parse_notes
from inspector.dumps.file import AGAIN, DumpFile
from inspector.errors import BadData, MemoryNotReadable, Stage, TargetNotSupported
from inspector.memory.interface import ABSENT, CUT_OFF, LEFT_OUT, Records, read_singly
from inspector.memory.numbers import U64, Bytes, addresses, header_of, integer, is_address
from inspector.memory.ranges import Ranges

__all__ = ["KDUMP_MAGIC", "Kdump", "KdumpMemory", "read_kdump"]

KDUMP_MAGIC = b"KDUMP   "
VERSION_LIMIT = 64
BLOCK_SIZES = tuple(1 << shift for shift in range(12, 21))
NOTES_LIMIT = 1 << 26
MACHINES = ("ppc64", "ppc64le", "Unknown", "")
"""QEMU writes Unknown for the bare-metal POWER machines."""

STATUS_INCOMPLETE = 0x8
HEADER = np.dtype(
    [
        ("signature", "S8"),
        ("header_version", "u4"),
        ("sysname", "S65"),
        ("nodename", "S65"),
        ("release", "S65"),
        ("version", "S65"),
        ("machine", "S65"),
        ("domainname", "S65"),
        ("padding", "S6"),
        ("seconds", "u8"),
        ("microseconds", "u8"),
        ("status", "u4"),
        ("block_size", "u4"),
        ("sub_hdr_size", "u4"),
        ("bitmap_blocks", "u4"),
        ("max_mapnr", "u4"),
        ("total_ram_blocks", "u4"),
        ("device_blocks", "u4"),
        ("written_blocks", "u4"),
        ("current_cpu", "u4"),
        ("nr_cpus", "u4"),
    ]
)
"""``struct disk_dump_header`` of a 64-bit machine (makedumpfile's diskdump_mod.h)."""
SUB_HEADER = np.dtype(
    [
        ("phys_base", "u8"),
        ("dump_level", "u4"),
        ("split", "u4"),
        ("start_pfn", "u8"),
        ("end_pfn", "u8"),
        ("offset_vmcoreinfo", "u8"),
        ("size_vmcoreinfo", "u8"),
        ("offset_note", "u8"),
        ("size_note", "u8"),
        ("offset_eraseinfo", "u8"),
        ("size_eraseinfo", "u8"),
        ("start_pfn_64", "u8"),
        ("end_pfn_64", "u8"),
        ("max_mapnr_64", "u8"),
    ]
)
"""``struct kdump_sub_header``.  Which members are valid depends on the header's version."""
BLOCK_SIZE_32 = 416
"""Where the header of a 32-bit machine has ``block_size``."""
ALIKE = 444
"""Bytes of the header up to ``total_ram_blocks``, which are equal in all files of a split dump."""

RUN = 1 << 12
"""Bytes of bitmap for which one count is kept; a bit is a page."""
SCAN_STEP = 1 << 20
"""Bytes of bitmap that are read at once."""
EAGER_BITMAP = 1 << 25
"""Bitmaps up to this size are counted when the dump is opened, to see that it is whole."""
LAST_DESCRIPTORS = 1 << 14
"""Page descriptors at the end whose pages are looked for in the file when the dump is opened."""
BATCH = 1 << 22
"""Bytes of pages, or of runs of the bitmap, that are worked on at once."""
CACHE = 1 << 24
"""Bytes of expanded pages that are kept."""
_LOWER = np.array([(1 << bit) - 1 for bit in range(8)], dtype=np.uint8)
"""For each bit of a byte, the mask of the bits before it: the lowest bit is the first page."""
_ONES = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
"""For each value of a byte, the number of its bits that are set."""

ELSEWHERE = "in another file of this split dump"
INCOMPLETE = "not in the dump, which was not written to its end"

HERE, IS_ABSENT, IS_EXCLUDED, IS_ELSEWHERE = range(4)


class Layout(NamedTuple):
    """The contents of the headers.

    ``pages`` is how many pages of the physical address space the bitmaps
    describe; the file holds those from ``first`` up to, but not including,
    ``end``, which are all of them unless the dump is ``split``.
    ``memory_bits``, ``dumped_bits`` and ``descriptors`` are the positions in
    the file of the two bitmaps and of the page descriptors.  ``level`` is
    makedumpfile's dump level.  ``notes`` and ``vmcoreinfo`` are each a position
    and a length in bytes, 0 for none.
    """

    byte_order: str
    version: int
    flags: int
    page_size: int
    pages: int
    first: int
    end: int
    memory_bits: int
    dumped_bits: int
    descriptors: int
    level: int | None
    split: bool
    notes: tuple[int, int]
    vmcoreinfo: tuple[int, int]

    @property
    def descriptor(self) -> np.dtype[np.void]:
        """The type of one page descriptor."""
        order = self.byte_order
        return np.dtype(
            [
                ("offset", order + "u8"),
                ("size", order + "u4"),
                ("flags", order + "u4"),
                ("page_flags", order + "u8"),
            ]
        )

    @property
    def compression(self) -> str:
        """The compression that the header announces."""
        names = [name for flag, name in compression.NAMES.items() if self.flags & flag]
        return " and ".join(names) or "not compressed"

    @property
    def incomplete(self) -> bool:
        """Whether makedumpfile ran out of space."""
        return bool(self.flags & STATUS_INCOMPLETE)


@dataclass(frozen=True)
class Kdump:
    """An opened kdump-compressed dump.

    ``cut`` says how its file is cut off, if it is; of a large file this is seen only when the
    missing part is read.  ``alike`` is the part of its header that all files of a split dump
    share: the machine, the time, the compression and the sizes.
    """

    memory: KdumpMemory
    notes: tuple[Note, ...]
    layout: Layout
    alike: bytes
    cut: str = ""


def read_kdump(file: DumpFile) -> Kdump:
    """Read the headers of an opened kdump-compressed dump.

    Raises:
        BadData: it is damaged or truncated, or of a 32-bit machine.
        TargetNotSupported: it is of another architecture, or compressed in
            a way that needs a package that is not installed.
    """
    layout = _layout(file)
    compression.require(layout.flags)
    notes: tuple[Note, ...] = ()
    if layout.notes[1]:
        notes = tuple(
            parse_notes(_part(file, *layout.notes, "notes", NOTES_LIMIT), layout.byte_order)
        )
    if layout.vmcoreinfo[1] and not any(note.name == "VMCOREINFO" for note in notes):
        text = _part(file, *layout.vmcoreinfo, "VMCOREINFO", NOTES_LIMIT)
        notes += (Note("VMCOREINFO", 0, text),)
    memory = KdumpMemory(file, layout)
    cut = file.cut
    if layout.descriptors - layout.dumped_bits <= EAGER_BITMAP and not layout.incomplete:
        cut = memory.cut_at_its_end() or cut
    return Kdump(memory, notes, layout, _part(file, 0, ALIKE, "header"), cut)


def _part(file: DumpFile, position: int, length: int, what: str, limit: int = 1 << 16) -> bytes:
    if length > limit:
        raise BadData(f"{file.path} is damaged: its {what} would have {length} bytes; {AGAIN}")
    if not file.holds(position, length):
        raise BadData(f"{file.path} is truncated: its {what} lies beyond its end; {AGAIN}")
    try:
        return file.contents.read(position, length)
    except MemoryNotReadable as error:
        raise BadData(f"{file.path} is damaged: its {what} was not written; {AGAIN}") from error


def _layout(file: DumpFile) -> Layout:
    beginning = _part(file, 0, HEADER.itemsize, "header")
    order = _byte_order(file, beginning)
    header = header_of(beginning, HEADER, order)
    version, page_size = header["header_version"], header["block_size"]
    sub_blocks, bitmap_blocks = header["sub_hdr_size"], header["bitmap_blocks"]
    pages = header["max_mapnr"]
    named = np.frombuffer(beginning, HEADER)[0]["machine"]
    machine = bytes(named).partition(b"\0")[0].decode("ascii", "replace")
    if machine not in MACHINES:
        raise TargetNotSupported(
            f"{file.path} is a dump of a machine of architecture {machine!r}, not of a POWER host; "
            "give one of the KVM-HV host",
            Stage.POWER,
        )
    sub = header_of(_part(file, page_size, SUB_HEADER.itemsize, "sub header"), SUB_HEADER, order)
    if version >= 6:
        pages = sub["max_mapnr_64"]
    if sub_blocks < 1 or bitmap_blocks % 2 or pages > bitmap_blocks // 2 * page_size * 8:
        raise BadData(
            f"{file.path} is damaged: bitmaps of {bitmap_blocks} blocks cannot describe "
            f"{pages} pages"
        )
    memory_bits = (1 + sub_blocks) * page_size
    dumped_bits = memory_bits + bitmap_blocks // 2 * page_size
    descriptors = memory_bits + bitmap_blocks * page_size
    if descriptors > file.size:
        raise BadData(f"{file.path} is truncated: its bitmaps lie beyond its end; {AGAIN}")
    split = version >= 2 and sub["split"] != 0
    width = "_64" if version >= 6 else ""
    first, end = (sub[f"start_pfn{width}"], sub[f"end_pfn{width}"]) if split else (0, pages)
    return Layout(
        byte_order=order,
        version=version,
        flags=header["status"],
        page_size=page_size,
        pages=pages,
        first=min(first, pages),
        end=min(end, pages),
        memory_bits=memory_bits,
        dumped_bits=dumped_bits,
        descriptors=descriptors,
        level=sub["dump_level"] if version >= 1 else None,
        split=split,
        notes=(sub["offset_note"], sub["size_note"]) if version >= 4 else (0, 0),
        vmcoreinfo=(sub["offset_vmcoreinfo"], sub["size_vmcoreinfo"]) if version >= 3 else (0, 0),
    )


def _byte_order(file: DumpFile, header: bytes) -> str:
    """Return the order in which the header makes sense; it has no mark for it."""
    for wide in (True, False):
        for order in "<>":
            given = header_of(header, HEADER, order)
            size = given["block_size"]
            if not wide:
                size = integer(header[BLOCK_SIZE_32 : BLOCK_SIZE_32 + 4], order)
            if given["header_version"] <= VERSION_LIMIT and size in BLOCK_SIZES:
                if not wide:
                    raise BadData(f"{file.path} is a dump of a 32-bit machine, not of a POWER host")
                return order
    raise BadData(
        f"{file.path} is damaged: its kdump header makes sense in neither byte order; {AGAIN}"
    )


class KdumpMemory:
    """The physical memory in a kdump-compressed dump."""

    name = "physical"

    def __init__(self, file: DumpFile, layout: Layout) -> None:
        self._file = file
        self._layout = layout
        self._counts = np.zeros(1, dtype=np.int64)
        """Element i: the pages in the dump before run i of the bitmap, as far as it is counted."""
        self._skipped: int | None = None
        """Pages in the dump before ``first``: their descriptors are in other files."""
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        """Expanded pages by their number, the one that was used last at the end."""
        self._damaged: dict[int, str] = {}
        """By the number of the page, why a page of the dump cannot be read."""
        level = layout.level
        self._excluded = f"excluded by makedumpfile's dump level {level}" if level else LEFT_OUT

    @cached_property
    def ram(self) -> Ranges:
        """Where the machine has memory, as the first bitmap says."""
        # ``edges`` collects the pages at which the bits change: at every other one, from the
        # first on, a range begins, and at the next one it ends
        layout = self._layout
        edges = [addresses([])]
        before = np.zeros(1, dtype=np.uint8)
        length = -(-layout.pages // 8)
        for begin in range(0, length, SCAN_STEP):
            step = min(SCAN_STEP, length - begin)
            packed = _part(self._file, layout.memory_bits + begin, step, "bitmap", SCAN_STEP)
            bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
            bits = bits[: layout.pages - 8 * begin]
            changed = np.flatnonzero(np.diff(bits, prepend=before))
            edges.append(addresses(changed) + np.uint64(8 * begin))
            before = bits[-1:]
        if before[0]:
            edges.append(addresses([layout.pages]))
        places = np.concatenate(edges) * np.uint64(layout.page_size)
        return Ranges(places[::2], places[1::2] - places[::2])

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes at a physical address."""
        size = self._layout.page_size
        pieces = []
        position, left = address, length
        while left > 0:
            page = None
            if is_address(position):
                number = position // size
                if number not in self._cache:
                    self._pages(addresses([number]))
                page = self._cache.get(number)
            if page is None:
                raise MemoryNotReadable(address, length, self._why(position))
            inside = position % size
            pieces.append(page[inside : inside + left])
            position += len(pieces[-1])
            left -= len(pieces[-1])
        return b"".join(pieces)

    def read_many(self, where: U64, length: int) -> Records:
        """Return ``length`` bytes at each physical address."""
        size = self._layout.page_size
        data = np.zeros((where.size, length), dtype=np.uint8)
        present = np.zeros(where.size, dtype=np.bool_)
        if not where.size or not length:
            return Records(data, present)
        inside = where % np.uint64(size)
        if length > size and length % size == 0 and not inside.any():
            steps = np.arange(length // size, dtype=np.uint64) * np.uint64(size)
            pieces = self.read_many((where[:, None] + steps).reshape(-1), size)
            whole = np.all(pieces.present.reshape(where.size, -1), axis=1)
            data[whole] = pieces.data.reshape(where.size, length)[whole]
            return Records(data, whole)
        within = inside + np.uint64(length) <= np.uint64(size)
        self._gather(where, inside, np.flatnonzero(within), data, present)
        records = Records(data, present)
        read_singly(self, where, np.flatnonzero(~within), records)
        return records

    def cut_at_its_end(self) -> str:
        """Return how the file is cut off, an empty text if it is not.

        It is cut off if page descriptors, or the data of the last pages, lie
        beyond its end.
        """
        layout = self._layout
        if not layout.pages:
            return ""
        count = int(self._ranks(addresses([layout.end]))[0])
        last = np.arange(max(0, count - LAST_DESCRIPTORS), count, dtype=np.uint64)
        found, there = self._descriptors(last)
        ends = found["offset"].astype(np.uint64) + found["size"]
        if there.all() and not np.any(ends > np.uint64(self._file.size)):
            return ""
        what = "the data of its last pages lie" if there.all() else "its page descriptors lie"
        return f"{self._file.path} is cut off: {what} beyond its end at {self._file.size} bytes"

    def _gather(
        self,
        where: U64,
        inside: U64,
        rows: NDArray[np.intp],
        data: Bytes,
        present: NDArray[np.bool_],
    ) -> None:
        """Fill rows that each lie within one page, a batch of pages at a time."""
        size, length = self._layout.page_size, data.shape[1]
        order = rows[np.argsort(where[rows], kind="stable")]
        # ``numbers`` has the distinct pages; the rows of page i are order[first[i]:first[i + 1]]
        numbers, first = np.unique(where[order] // np.uint64(size), return_index=True)
        first = np.append(first, order.size)
        step = max(1, BATCH // size)
        for begin in range(0, numbers.size, step):
            part = numbers[begin : begin + step]
            matrix, ok = self._pages(part)
            bounds = first[begin : begin + part.size + 1]
            chosen = order[bounds[0] : bounds[-1]]
            index = np.repeat(np.arange(part.size), np.diff(bounds))
            present[chosen] = ok[index]
            if length == size:
                data[chosen] = matrix[index]
                continue
            # a view that copies nothing: row i has the bytes of the pages from byte i on
            windows = np.lib.stride_tricks.sliding_window_view(matrix.reshape(-1), length)
            data[chosen] = windows[index * size + inside[chosen].astype(np.int64)]

    def _pages(self, numbers: U64) -> tuple[Bytes, NDArray[np.bool_]]:
        """Return pages as rows, and which of them could be read.

        The numbers of the pages are distinct and in ascending order.
        """
        size = self._layout.page_size
        matrix = np.zeros((numbers.size, size), dtype=np.uint8)
        ok = np.zeros(numbers.size, dtype=np.bool_)
        wanted = []
        for row, number in enumerate(numbers.tolist()):
            page = self._cache.get(number)
            if page is None:
                wanted.append(row)
                continue
            self._cache.move_to_end(number)
            matrix[row] = np.frombuffer(page, dtype=np.uint8)
            ok[row] = True
        rows = np.array(wanted, dtype=np.int64)
        rows = rows[self._states(numbers[rows]) == HERE]
        found, there = self._descriptors(self._ranks(numbers[rows]))
        self._damaged |= dict.fromkeys(numbers[rows[~there]].tolist(), CUT_OFF)
        rows, found = rows[there], found[there]
        columns = (found[name].tolist() for name in ("offset", "size", "flags"))
        # All pages of zeros share one place in the file, which is expanded only once.
        expanded: dict[tuple[int, int, int], bytes] = {}
        for row, *place in zip(rows.tolist(), *columns, strict=True):
            offset, stored, flags = place
            page = expanded.get((offset, stored, flags))
            if page is None:
                number = int(numbers[row])
                page = self._page(number, offset, stored, flags)
                if page is None:
                    continue
                expanded[offset, stored, flags] = page
                self._keep(number, page)
            matrix[row] = np.frombuffer(page, dtype=np.uint8)
            ok[row] = True
        return matrix, ok

    def _keep(self, number: int, page: bytes) -> None:
        self._cache[number] = page
        if len(self._cache) * len(page) > CACHE:
            self._cache.popitem(last=False)

    def _page(self, number: int, offset: int, stored: int, flags: int) -> bytes | None:
        """Return a page expanded; None if it cannot be read, and note why."""
        layout = self._layout
        try:
            if layout.incomplete and (not offset or not self._file.holds(offset, stored)):
                self._damaged[number] = INCOMPLETE
                return None
            if not 0 < stored <= layout.page_size:
                raise PageDamaged(f"{stored} bytes cannot hold a page")
            if not self._file.holds(offset, stored):
                self._damaged[number] = CUT_OFF
                return None
            data = self._file.contents.read(offset, stored)
            return compression.expand(data, flags, layout.page_size)
        except (PageDamaged, MemoryNotReadable) as error:
            self._damaged[number] = f"its page is damaged in the dump ({error})"
            return None

    def _why(self, address: int) -> str:
        if not is_address(address):
            return ABSENT
        number = address // self._layout.page_size
        if number in self._damaged:
            return self._damaged[number]
        state = int(self._states(addresses([number]))[0])
        return {IS_EXCLUDED: self._excluded, IS_ELSEWHERE: ELSEWHERE}.get(state, ABSENT)

    def _states(self, numbers: U64) -> NDArray[np.uint8]:
        """Return for each page that it is in this file, or why it is not."""
        layout = self._layout
        states = np.full(numbers.size, IS_ABSENT, dtype=np.uint8)
        known = np.flatnonzero(numbers < np.uint64(layout.pages))
        pages = numbers[known]
        states[known[self._bits(layout.memory_bits, pages)]] = IS_EXCLUDED
        dumped = self._bits(layout.dumped_bits, pages)
        states[known[dumped]] = HERE
        if layout.split:
            here = (pages >= np.uint64(layout.first)) & (pages < np.uint64(layout.end))
            states[known[dumped & ~here]] = IS_ELSEWHERE
        return states

    def _bits(self, bitmap: int, numbers: U64) -> NDArray[np.bool_]:
        """Return the bit of each page in the bitmap at a position of the file."""
        found = self._contents(np.uint64(bitmap) + (numbers >> np.uint64(3)), 1)
        bit: NDArray[np.bool_] = (
            (found[:, 0] >> (numbers & np.uint64(7)).astype(np.uint8)) & 1
        ) != 0
        return bit

    def _ranks(self, numbers: U64) -> U64:
        """Return the index of the descriptor of each page; the pages are in ascending order."""
        layout = self._layout
        if self._skipped is None:
            # 0 for the call below, which counts from the beginning of the bitmap
            self._skipped = 0
            self._skipped = int(self._ranks(addresses([layout.first]))[0])
        byte = (numbers >> np.uint64(3)).astype(np.int64)
        run = byte // RUN
        if numbers.size:
            self._count_to(int(run[-1]))
        ranks = self._counts[run]
        # A caller may ask for the page after the last one, whose run may lie beyond the bitmap.
        # The count before that run is the answer; the last run is read in its place and not used.
        last = (layout.descriptors - layout.dumped_bits) // RUN - 1
        runs, back = np.unique(np.minimum(run, last), return_inverse=True)
        step = BATCH // RUN
        for begin in range(0, runs.size, step):
            part = runs[begin : begin + step]
            rows = np.flatnonzero((back >= begin) & (back < begin + part.size))
            block = self._contents((layout.dumped_bits + part * RUN).astype(np.uint64), RUN)
            # before[i, n]: the bits that are set in the first n bytes of run i
            before = np.zeros((part.size, RUN + 1), dtype=np.int64)
            np.cumsum(_ONES[block], axis=1, out=before[:, 1:])
            line = back[rows] - begin
            column = byte[rows] - run[rows] * RUN
            bits = block[line, column] & _LOWER[(numbers[rows] & np.uint64(7)).astype(np.int64)]
            inside = before[line, column] + _ONES[bits]
            ranks[rows] += np.where(run[rows] > last, 0, inside)
        return (ranks - self._skipped).astype(np.uint64)

    def _count_to(self, run: int) -> None:
        """Count the pages in the runs of the bitmap before this run, unless that is done."""
        layout = self._layout
        known = self._counts.size - 1
        if run <= known:
            return
        parts = [self._counts]
        total = int(self._counts[-1])
        for begin in range(known * RUN, run * RUN, SCAN_STEP):
            length = min(SCAN_STEP, run * RUN - begin)
            block = _part(self._file, layout.dumped_bits + begin, length, "bitmap", SCAN_STEP)
            words = np.frombuffer(block, dtype=np.uint64).reshape(-1, RUN // 8)
            # most runs of a large dump are zeros, and need no look at each of their bytes
            counts = np.zeros(len(words), dtype=np.int64)
            some = words.any(axis=1)
            counts[some] = _ONES[words[some].view(np.uint8)].sum(axis=1, dtype=np.int64)
            parts.append(total + np.cumsum(counts))
            total = int(parts[-1][-1])
        self._counts = np.concatenate(parts)

    def _descriptors(self, ranks: U64) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Return the page descriptors with these indices, and which of them are in the file."""
        kind = self._layout.descriptor
        places = np.uint64(self._layout.descriptors) + ranks * np.uint64(kind.itemsize)
        data, present = self._file.contents.read_many(places, kind.itemsize)
        return np.ascontiguousarray(data).view(kind).reshape(-1), present

    def _contents(self, where: U64, length: int) -> Bytes:
        records = self._file.contents.read_many(where, length)
        if not records.present.all():
            raise BadData(
                f"{self._file.path} is cut off or damaged: a part of its bitmaps is missing; "
                f"{AGAIN}"
            )
        return records.data
