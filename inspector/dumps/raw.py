"""Raw images: the bytes of physical memory from some address on, and nothing else.

QEMU's ``pmemsave``, a ``memory-backend-file`` and GDB's ``dump binary
memory`` make them.  The file does not say where its first byte belongs, so the
target does: ``raw:FILE@0xADDRESS``.  Without an address, the image begins at 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from inspector.dumps.file import DumpFile, open_file
from inspector.errors import BadData
from inspector.memory.numbers import addresses, is_address
from inspector.memory.segments import SegmentedMemory

__all__ = ["RAW_PREFIX", "RawTarget", "open_raw", "parse_raw"]

RAW_PREFIX = "raw:"


class RawTarget(NamedTuple):
    """A raw image and the physical address of its first byte."""

    path: Path
    start: int


def parse_raw(target: str) -> RawTarget:
    """Read ``raw:FILE@0xADDRESS``.

    Raises:
        BadData: the address is not a number.
    """
    name = target.removeprefix(RAW_PREFIX)
    path, mark, text = name.rpartition("@")
    if not mark:
        return RawTarget(Path(name), 0)
    try:
        start = int(text, 0)
    except ValueError as error:
        raise BadData(
            f"'{text}' is not an address; a raw image is given as {RAW_PREFIX}FILE@0xADDRESS"
        ) from error
    return RawTarget(Path(path), start)


def open_raw(raw: RawTarget) -> SegmentedMemory:
    """Open a raw image.

    Raises:
        BadData: the file cannot be read, or does not fit at its address.
    """
    file: DumpFile = open_file(raw.path, wrapped=False)
    if not is_address(raw.start) or not is_address(raw.start + file.size - 1):
        raise BadData(f"an image of {file.size} bytes does not fit at {raw.start:#x}")
    whole = addresses([file.size])
    return file.contents.view(addresses([raw.start]), whole, whole * 0)
