"""Types in the form of a debug file's, made of the layouts of an invented kernel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fixtures.synthetic import BUILD_IDS, LAYOUTS
from inspector.image.btf import Member

__all__ = ["FakeDwarf"]


class FakeDwarf:
    """Stands in for ``inspector.image.dwarf.Dwarf``; the name of the file is its build ID."""

    layouts: Mapping[str, tuple[int, Mapping[str, tuple[int, int]]]] = LAYOUTS
    of_the_module = Path(BUILD_IDS["kvm_hv"].hex())

    def __init__(self, path: Path) -> None:
        self.build_id = path.name
        self._names = list(self.layouts)

    def find_struct(self, name: str) -> int | None:
        return self._names.index(name) if name in self.layouts else None

    def size_of(self, type_id: int) -> int:
        return self.layouts[self._names[type_id]][0]

    def member(self, type_id: int, path: str) -> Member | None:
        place = self.layouts[self._names[type_id]][1].get(path)
        return Member(*place, 0) if place else None
