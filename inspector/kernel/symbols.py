"""Names for addresses of the host's code: the kernel's kallsyms, and those of its modules.

A module's symbol table in memory has sizes, so an address between two
functions belongs to neither.  The kernel's own table has no sizes.
"""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import NamedTuple

from inspector.errors import BadData, InspectorError
from inspector.image.elf import SymbolTable
from inspector.image.kallsyms import CHUNK, Kallsyms, Window, decode, token_tables
from inspector.kernel.host import KVM_MODULES
from inspector.regions import linear_to_physical
from inspector.structures.lists import list_entries
from inspector.structures.modules import module_symbols
from inspector.structures.space import KernelSpace

__all__ = ["CodePlace", "Symbols"]

ANCHOR = "linux_banner"
SEARCHED = 32
"""Chunks on each side of the kernel's banner in which its symbol table is searched."""


class CodePlace(NamedTuple):
    """An address of code and the function that holds it; ``function`` is empty if it is unknown."""

    address: int
    function: str = ""
    offset: int = 0
    module: str = ""

    @property
    def of_kvm(self) -> bool:
        """Whether this is code of KVM."""
        return self.module in KVM_MODULES or self.function.startswith("kvm")

    def __str__(self) -> str:
        if not self.function:
            return f"{self.address:#x}"
        return f"{self.function}+{self.offset:#x}" + (f" [{self.module}]" if self.module else "")


class Symbols:
    """Looks up the functions at addresses of the host's code."""

    def __init__(self, kernel: KernelSpace) -> None:
        self._kernel = kernel
        self._known: dict[int, CodePlace] = {}

    def at(self, address: int) -> CodePlace:
        """Return the function at an address; never raises, because a name is only a help."""
        if address not in self._known:
            self._known[address] = self._in_kernel(address) or self._in_module(address)
        return self._known[address]

    def _in_kernel(self, address: int) -> CodePlace | None:
        found = self._kallsyms.before(address) if self._kallsyms else None
        return CodePlace(address, found[0], address - found[1]) if found else None

    def _in_module(self, address: int) -> CodePlace:
        for module, table in self._modules.items():
            found = table.covering(address)
            if found:
                return CodePlace(address, found[0], address - found[1], module)
        return CodePlace(address)

    @cached_property
    def _kallsyms(self) -> Kallsyms | None:
        """The kernel's own table: the one that has the banner at the profile's address."""
        symbols = self._kernel.profile.symbols
        middle = linear_to_physical(symbols[ANCHOR]) // CHUNK
        window = Window(self._kernel.memory)
        near = range(max(0, middle - SEARCHED), middle + SEARCHED)
        chunks = sorted(near, key=lambda chunk: abs(chunk - middle))
        for tokens in token_tables(window, chunks):
            try:
                table = decode(window, tokens)
            except BadData:
                continue
            if symbols[ANCHOR] in table.find([ANCHOR]).get(ANCHOR, []):
                return table
        return None

    @cached_property
    def _modules(self) -> dict[str, SymbolTable]:
        kernel = self._kernel
        found: dict[str, SymbolTable] = {}
        offset, size = kernel.profile.struct("module").place("name")
        head = kernel.profile.symbols["modules"]
        # The addresses of a table that cannot be read have no names.
        with contextlib.suppress(InspectorError):
            for module in list_entries(kernel, head, "module", "list"):
                name = kernel.read(module + offset, size).split(b"\0", 1)[0]
                with contextlib.suppress(InspectorError):
                    found[name.decode("ascii", "replace")] = module_symbols(kernel, module)
        return found
