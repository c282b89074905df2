"""Open a dump of any format, which is recognized by the first bytes of the file.

A format is one module of this package and one case of ``open_dump``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inspector.dumps.elfcore import ELF_MAGIC, ElfCore, Note, read_core
from inspector.dumps.file import AGAIN, DumpFile, open_file
from inspector.dumps.kdump import KDUMP_MAGIC, Layout, read_kdump
from inspector.dumps.packed import copied_again
from inspector.dumps.raw import RAW_PREFIX, open_raw, parse_raw
from inspector.dumps.split import SPLIT_PREFIX, open_split, what_lacks
from inspector.errors import BadData
from inspector.memory.interface import PhysicalMemory

__all__ = ["PREFIXES", "Dump", "open_dump"]

PREFIXES = (RAW_PREFIX, SPLIT_PREFIX)
"""The prefixes of targets that are more than the name of a file."""

CUT = "cut off"
FILTERS = {2: "cache", 4: "private cache", 8: "user", 16: "free"}
"""The pages that each bit of makedumpfile's dump level leaves out.  Bit 1 leaves out pages of
zeros, and loses nothing in this format."""


@dataclass(frozen=True, kw_only=True)
class Dump:
    """An opened dump.

    ``kind`` says for people what the dump is.  ``dump_level`` is
    makedumpfile's, None if the format has none.  ``core`` is set for ELF
    cores.  ``lacks`` says what is missing as a whole: files of a split dump
    that were not given, or the end of a file that is cut off.
    """

    memory: PhysicalMemory
    kind: str
    notes: tuple[Note, ...] = ()
    dump_level: int | None = None
    core: ElfCore | None = None
    lacks: str = ""

    def note(self, name: str) -> bytes | None:
        """Return the contents of the first note of this name."""
        return next((note.data for note in self.notes if note.name == name), None)

    @property
    def vmcoreinfo(self) -> str | None:
        """The kernel's own VMCOREINFO, if the dump carries it."""
        data = self.note("VMCOREINFO")
        return None if data is None else data.decode("ascii", "replace")


def open_dump(target: str | Path) -> Dump:
    """Open a dump: a file, ``split:FILE,FILE,...``, or a raw image as ``raw:FILE@0xADDRESS``.

    Raises:
        BadData: it is damaged or truncated, or its format is not known.
        TargetNotSupported: it is of another architecture, or compressed in
            a way that needs a package that is not installed.
    """
    if isinstance(target, str) and target.startswith(RAW_PREFIX):
        raw = parse_raw(target)
        return Dump(memory=open_raw(raw), kind=f"a raw image of memory from {raw.start:#x}")
    if isinstance(target, str) and target.startswith(SPLIT_PREFIX):
        first, memory, lacks = open_split(target)
        kind = f"a split kdump-compressed dump ({_filter(first.layout)})"
        return Dump(
            memory=memory, kind=kind, notes=first.notes, dump_level=first.layout.level, lacks=lacks
        )
    file = open_file(Path(target))
    magic = file.beginning(8)
    if magic.startswith(ELF_MAGIC):
        core = read_core(file)
        kind = _named("ELF core", file) + (f" ({CUT})" if core.cut else "")
        return Dump(
            memory=core.memory, kind=kind, notes=core.notes, core=core, lacks=copied_again(core.cut)
        )
    if magic == KDUMP_MAGIC:
        kdump = read_kdump(file)
        what = _named("kdump-compressed dump", file)
        lacks = what_lacks([kdump.layout]) if kdump.layout.split else ""
        what = f"one file of {what}" if lacks else what
        kind = f"{what} ({_filter(kdump.layout)}{f', {CUT}' if kdump.cut else ''})"
        lacks = lacks or copied_again(kdump.cut)
        return Dump(
            memory=kdump.memory,
            kind=kind,
            notes=kdump.notes,
            dump_level=kdump.layout.level,
            lacks=lacks,
        )
    if file.cut:
        raise BadData(f"{file.cut}, and the part before that is not a dump; {AGAIN}")
    raise BadData(
        f"{file.path} is not a dump of a known format (it begins with {magic!r}); give a "
        "capture of this tool, an ELF core or a kdump-compressed dump, or a raw image of "
        f"memory as {RAW_PREFIX}FILE@0xADDRESS"
    )


def _named(name: str, file: DumpFile) -> str:
    if file.flattened:
        return f"a flattened {name}"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _filter(layout: Layout) -> str:
    parts = [layout.compression]
    if layout.level is not None:
        gone = [name for bit, name in FILTERS.items() if layout.level & bit]
        left_out = f": without {', '.join(gone)} pages" if gone else ""
        parts.append(f"dump level {layout.level}{left_out}")
    if layout.incomplete:
        parts.append("not written to its end")
    return ", ".join(parts)
