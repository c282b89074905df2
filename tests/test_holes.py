"""Captures of real kernels without some pages: the rest is found, and the gaps are named."""

from __future__ import annotations

from collections import Counter

import pytest

from fixtures.lab.damaged import of_commands, of_files
from fixtures.mutations.holes import FOUND, REFUSED, SAID, Holes, pages_of
from inspector.errors import MemoryNotReadable
from inspector.structures.modules import find_modules, module_symbols, module_values
from inspector.structures.space import KernelSpace
from tests.fixtures import DIRECTORY, opened
from tests.memories import without
from tests.profiles import examples

FEW = examples(10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["powernv9-two-vms", "powernv9-mixed-6.12-64k", "powernv9-list-many-lpids-5.10-64k"],
)
def test_whatever_lacks_the_rest_is_found(name: str) -> None:
    holes = Holes(opened(DIRECTORY / f"{name}.core.zst"))
    ends: Counter[str] = Counter()
    pages = pages_of(holes.memory, 4096)
    tries = [[page] for page in pages[:: max(1, len(pages) // FEW)]]
    tries += [pages[at :: len(pages) // 3] for at in (0, 1)]
    for taken in tries:
        holed = holes.tried(taken, 4096)
        assert not holed.wrong, (hex(taken[0]), holed.wrong)
        ends[holed.end] += 1
    assert ends[SAID]
    assert ends.keys() <= {FOUND, SAID, REFUSED}


@pytest.mark.slow
def test_damaged_files_and_commands() -> None:
    tally: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    path = DIRECTORY / "powernv9-singles.core.zst"
    of_commands(path, tally, wrong.append, count=1)
    of_files(path, tally, wrong.append, count=1)
    assert wrong == []
    assert sum(count for (_, end), count in tally.items() if end == "runs") == 7 + 6


def test_symbols_around_a_hole() -> None:
    acquired = opened(DIRECTORY / "powernv9-singles.core.zst")
    kernel = KernelSpace(acquired.memory, acquired.profile)
    module = find_modules(kernel, {"kvm"})["kvm"]
    (expected,) = module_symbols(kernel, module).values("vm_list")
    symtab = kernel.field("mod_kallsyms", kernel.field("module", module, "kallsyms"), "symtab")
    lost = []
    for page in range(symtab & -4096, symtab + 4 * 4096, 4096):
        place = kernel.physical(page)
        memory = without(acquired.memory, place, 4096)
        holed = KernelSpace(memory, acquired.profile)
        with pytest.raises(MemoryNotReadable):
            module_symbols(holed, module)
        try:
            assert module_values(holed, module, "vm_list") == [expected]
        except MemoryNotReadable:
            lost.append(page)
    assert len(lost) < 2
