"""Calls and returns of kernel functions, as the model follows them, and its divergences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from inspector import encoding

__all__ = ["SOURCES", "Array", "Call", "Divergence", "Return", "SlotWords", "is_cut", "slot_words"]

_NESTED = "arch/powerpc/kvm/book3s_hv_nested.c"
_RADIX = "arch/powerpc/kvm/book3s_64_mmu_radix.c"
_HV = "arch/powerpc/kvm/book3s_hv.c"

SOURCES = {
    "kvmhv_get_nested": _NESTED,
    "kvmhv_insert_nest_rmap": _NESTED,
    "kvmhv_release_all_nested": _NESTED,
    "kvmhv_release_nested": _NESTED,
    "kvmhv_remove_nest_rmap_range": _NESTED,
    "kvmhv_update_nest_rmap_rc_list": _NESTED,
    "kvmppc_core_commit_memory_region_hv": _HV,
    "kvmppc_core_free_memslot_hv": _HV,
    "kvmppc_create_pte": _RADIX,
    "kvmppc_free_pgtable_radix": _RADIX,
    "kvmppc_unmap_pte": _RADIX,
}
"""The functions that are followed, and where each is in the kernel's sources."""

SlotWords = tuple[int | None, ...]
"""A slot as it is stored in memory: its word, then the ``next`` and the word of each node.

None is a word that could not be read.  A long list may be cut off.
"""


class Call(NamedTuple):
    """A function was called.

    ``parent`` is the number of the followed call that made this one.
    ``values`` are words that were read before the call, by name; ``slots`` are
    the slots that it concerns, by kernel address.
    """

    number: int
    function: str
    arguments: tuple[int, ...]
    parent: int | None
    values: Mapping[str, int | None]
    slots: Mapping[int, SlotWords]


class Return(NamedTuple):
    """The call with this number returned."""

    number: int
    result: int
    values: Mapping[str, int | None]
    slots: Mapping[int, SlotWords]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first difference between the kernel and the model.

    If it concerns a slot, ``slot`` is the kernel address of the slot, and
    ``expected`` and ``found`` are its words; otherwise both are texts.
    """

    number: int
    function: str
    arguments: tuple[int, ...]
    what: str
    expected: SlotWords | str
    found: SlotWords | str
    slot: int | None = None
    gfn: int | None = None

    @property
    def source(self) -> str:
        """Where the function is in the kernel's sources."""
        return SOURCES.get(self.function, "")


class Array(NamedTuple):
    """An rmap array: the VM it belongs to, its address, and the guest pages it is for."""

    vm: int
    address: int
    base_gfn: int
    npages: int


def slot_words(words: Sequence[int], nodes: Sequence[int]) -> SlotWords:
    """Return a slot as it is stored in memory, from its words and the addresses of its nodes."""
    # Node i holds words[i] and the link to node i + 1; the last link is the last word itself.
    links = [*nodes, words[-1]]
    found = [links[0]]
    for link, word in zip(links[1:], words[:-1], strict=True):
        found += (link, word)
    return tuple(found)


def is_cut(words: SlotWords) -> bool:
    """Say whether a list continues after the words that were recorded."""
    link = words[-2] if len(words) > 2 else words[0]
    return link is not None and encoding.form_of(link) is encoding.SlotForm.LIST
