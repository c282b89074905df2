"""Look a page up by any of its addresses, and show the way from L2 to the host and back.

Whatever the question is, the answer has the same parts: the L2 pages on the
way, the pages of L1 with their rmap slots, and the host pages with
everything that maps them.  So an L2 page, its L1 page and its host page give
the same chain.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from inspector import encoding
from inspector.checks.findings import Finding
from inspector.checks.verdict import NODE_SIZE, judge
from inspector.errors import BadData
from inspector.kvm.snapshot import Memslot, Nested, Snapshot, Vm
from inspector.questions.pages import Pages
from inspector.questions.parts import Answer, HostPage, L1Page, L2Page, Mapping
from inspector.regions import LINEAR_MAP, LINEAR_SIZE, linear_to_physical

__all__ = ["LIMIT", "Kind", "Question", "lookup"]

LIMIT = 64
"""How many L2 pages an answer shows."""

WORD = 8


class Kind(enum.Enum):
    """The kind of number that a question is about."""

    GFN = "gfn"
    GPA = "L1 address"
    L2 = "L2 address"
    HPA = "host physical address"
    WORD = "rmap word"
    ADDRESS = "kernel address"


class Question(NamedTuple):
    """A number to look up; ``lpid`` belongs to an L2 address, ``vm`` limits the search to a VM."""

    kind: Kind
    value: int
    lpid: int = 0
    vm: int | None = None

    def __str__(self) -> str:
        value = f"{self.lpid}:{self.value:#x}" if self.kind is Kind.L2 else f"{self.value:#x}"
        where = "" if self.vm is None else f" in VM lpid {self.vm}"
        return f"{self.kind.value} {value}{where}"


def lookup(snapshot: Snapshot, question: Question, limit: int | None = LIMIT) -> Answer:
    """Answer a question of a snapshot.

    Args:
        snapshot: the snapshot to search.
        question: the number to look up.
        limit: how many L2 pages to show, None for all.

    Raises:
        BadData: the question names a VM that is not in the snapshot.
    """
    return _Search(snapshot, question, limit).answer()


@dataclass
class _Found:
    """The parts of the answer by their keys, in the order in which they were found."""

    meanings: dict[str, None] = field(default_factory=dict)
    l2: dict[tuple[int, int, int], L2Page] = field(default_factory=dict)
    l1: dict[tuple[int, int], L1Page] = field(default_factory=dict)
    host: dict[int, tuple[Mapping, ...]] = field(default_factory=dict)
    left_out: set[tuple[int, int, int]] = field(default_factory=set)


class _Search:
    def __init__(self, snapshot: Snapshot, question: Question, limit: int | None) -> None:
        self._snapshot = snapshot
        self._question = question
        self._limit = limit
        self._shift = snapshot.page_shift
        self._found = _Found()
        known = [vm.lpid for vm in snapshot.vms]
        if question.vm is not None and question.vm not in known:
            raise BadData(
                f"there is no VM with LPID {question.vm}; LPIDs of the VMs that were read: "
                + (", ".join(str(lpid) for lpid in known) or "none")
            )
        judgement = judge(snapshot)
        self._findings = judgement.findings
        self._notes = list(judgement.notes)
        self._all = [
            Pages(checked, judged.findings)
            for checked, judged in zip(judgement.joins.vms, judgement.vms, strict=True)
            if checked.vm.radix
        ]
        self._notes += [
            f"VM lpid {vm.lpid}: {gap.text}"
            for vm in snapshot.vms
            for gap in vm.gaps
            if question.vm in (None, vm.lpid)
        ]
        self._notes += [
            f"VM lpid {vm.lpid} has the hash MMU, so it has no tables to look into"
            for vm in snapshot.vms
            if not vm.radix and question.vm in (None, vm.lpid)
        ]
        self._chosen = [pages for pages in self._all if question.vm in (None, pages.vm.lpid)]

    def answer(self) -> Answer:
        value, kind = self._question.value, self._question.kind
        if kind is Kind.HPA:
            self._host(value)
            self._entries_at(value)
        elif kind is Kind.WORD:
            self._word(value)
        elif kind is Kind.ADDRESS:
            self._address(value)
        else:
            for pages in self._chosen:
                if kind is Kind.GFN:
                    self._l1(pages, value)
                elif kind is Kind.GPA:
                    self._l1(pages, value >> self._shift)
                else:
                    self._l2_asked(pages, self._question.lpid, value)
        found = self._found
        return Answer(
            asked=str(self._question),
            page_shift=self._shift,
            meanings=tuple(found.meanings),
            l2_pages=tuple(found.l2.values()),
            l1_pages=tuple(found.l1.values()),
            host_pages=tuple(HostPage(address, by) for address, by in sorted(found.host.items())),
            findings=self._findings_shown(),
            notes=tuple(self._notes),
            left_out=len(found.left_out),
        )

    def _l2_asked(self, pages: Pages, lpid: int, address: int) -> None:
        known = lpid in pages.nested
        if not known:
            self._says(pages.vm, f"there is no nested guest with L1 LPID {lpid}")
        if known or pages.l2_page(lpid, address).entries:
            self._l2(pages, lpid, address)

    # --- what is shown of one page of each kind, and what it leads to ---------------------

    def _l2(self, pages: Pages, lpid: int, address: int) -> None:
        """Show an L2 page, the L1 page it is mapped to, and the host pages both lead to."""
        page = self._l2_shown(pages, lpid, address)
        if page is None:
            return
        gfns = [] if page.l1_address is None else [page.l1_address >> self._shift]
        if page.shadow_address is not None and not page.agrees:
            gfns += [
                mapping.address >> self._shift
                for mapping in pages.mappings(self._page(page.shadow_address))
                if mapping.lpid is None
            ]
        for gfn in gfns:
            self._l1_shown(pages, gfn)
        for frame in (page.host_address, page.shadow_address):
            if frame is not None:
                self._host_shown(self._page(frame))

    def _l1(self, pages: Pages, gfn: int) -> None:
        """Show a page of L1, the host page it is mapped to, and the L2 pages that lead to it."""
        if pages.memslot(gfn) is None:
            self._says(pages.vm, f"no memslot holds gfn {gfn:#x}")
            return
        page = self._l1_shown(pages, gfn)
        if page.host_address is not None:
            self._host_shown(page.host_address)
            for mapping in pages.mappings(page.host_address):
                if mapping.lpid is not None:
                    chain = pages.l2_page(mapping.lpid, mapping.address)
                    if chain.l1_address is None or self._leads_to(chain, page):
                        self._l2_shown(pages, mapping.lpid, mapping.address)
        for lpid, address in pages.l1_leaves(page.address):
            self._l2_shown(pages, lpid, address)

    def _leads_to(self, chain: L2Page, page: L1Page) -> bool:
        """Say whether an L2 page mapped to the host page of ``page`` is so through ``page``."""
        by_table = chain.l1_address is not None and (chain.l1_address >> self._shift) == page.gfn
        return by_table or any(chain.slot == slot.gfn for slot in page.slots)

    def _host(self, address: int) -> None:
        """Show a host page, and every page of L1 and of L2 that leads to it."""
        frame = self._page(address)
        mapped_by = self._host_shown(frame)
        for pages in self._chosen:
            for mapping in mapped_by:
                if mapping.vm == pages.vm.lpid and mapping.lpid is None:
                    gfn = mapping.address >> self._shift
                    self._l1_shown(pages, gfn)
                    for lpid, place in pages.l1_leaves(gfn << self._shift):
                        self._l2_shown(pages, lpid, place)
                elif mapping.vm == pages.vm.lpid and mapping.lpid is not None:
                    self._l2_shown(pages, mapping.lpid, mapping.address)

    def _l2_shown(self, pages: Pages, lpid: int, address: int) -> L2Page | None:
        page = pages.l2_page(lpid, address)
        key = page.vm, lpid, page.address
        if key not in self._found.l2 and len(self._found.l2) == self._limit:
            self._found.left_out.add(key)
            return None
        return self._found.l2.setdefault(key, page)

    def _l1_shown(self, pages: Pages, gfn: int) -> L1Page:
        key = pages.vm.lpid, gfn
        if key not in self._found.l1:
            self._found.l1[key] = pages.l1_page(gfn)
        return self._found.l1[key]

    def _host_shown(self, frame: int) -> tuple[Mapping, ...]:
        """Show a host page with everything that maps it in any VM, chosen or not."""
        if frame not in self._found.host:
            self._found.host[frame] = tuple(
                mapping for pages in self._all for mapping in pages.mappings(frame)
            )
        return self._found.host[frame]

    def _page(self, address: int) -> int:
        return address >> self._shift << self._shift

    # --- words and addresses --------------------------------------------------------------

    def _word(self, word: int) -> None:
        if not word:
            self._found.meanings["an empty slot, or LPID 0, L2 page 0 in a list node"] = None
        for pages in self._chosen:
            self._link(pages, word)
            checked, rmaps = pages.checked, pages.vm.rmaps
            rows = np.flatnonzero(encoding.identity(rmaps.word) == encoding.identity(word))
            for row in rows:
                entry = pages.entry(int(row))
                self._says(
                    pages.vm, f"entry {entry.position} of the slot of gfn {entry.gfn:#x} names it"
                )
                self._l1_shown(pages, int(rmaps.gfn[checked.slot_of[row]]))
            lpid, address = encoding.decode(word)
            if rows.size or lpid in pages.nested:
                self._found.meanings[f"the entry of L2 {lpid}:{address:#x}"] = None
                self._l2(pages, lpid, address)

    def _link(self, pages: Pages, word: int) -> None:
        """Show the list nodes that a word points to, if it is a link."""
        if encoding.form_of(word) is not encoding.SlotForm.LIST:
            return
        rmaps = pages.vm.rmaps
        for row in np.flatnonzero(rmaps.node == np.uint64(word)):
            self._node(pages, int(row))

    def _node(self, pages: Pages, row: int) -> None:
        entry = pages.entry(row)
        lpid, address = encoding.decode(entry.word)
        where = f"entry {entry.position} of the slot of gfn {entry.gfn:#x}"
        self._says(
            pages.vm, f"the list node at {entry.node:#x}, {where}, for L2 {lpid}:{address:#x}"
        )
        self._l1_shown(pages, entry.gfn)
        self._l2(pages, lpid, address)

    def _address(self, address: int) -> None:
        for pages in self._chosen:
            rmaps = pages.vm.rmaps
            # unsigned: below a node the difference wraps round, and is larger than a node
            inside = np.uint64(address) - rmaps.node < np.uint64(NODE_SIZE)
            for row in np.flatnonzero((rmaps.node != 0) & inside):
                self._node(pages, int(row))
            for memslot in pages.vm.memslots:
                offset = address - memslot.rmap
                if memslot.rmap and 0 <= offset < WORD * memslot.npages:
                    gfn = memslot.base_gfn + offset // WORD
                    self._says(
                        pages.vm, f"the slot of gfn {gfn:#x} in the rmap array of {_named(memslot)}"
                    )
                    self._l1(pages, gfn)
        for vm in self._snapshot.vms:
            if self._question.vm in (None, vm.lpid):
                self._structures(vm, address)
        if 0 <= address - LINEAR_MAP < LINEAR_SIZE:
            physical = linear_to_physical(address)
            self._found.meanings[f"physical {physical:#x}, in the kernel's linear map"] = None
            self._host(physical)
            self._entries_at(physical)

    def _structures(self, vm: Vm, address: int) -> None:
        """Say which structure of a VM an address is known to lie in."""
        owners: list[tuple[str, Vm | Memslot | Nested]] = [("its struct kvm", vm)]
        owners += [(f"{_named(memslot)}, {_of(memslot)}", memslot) for memslot in vm.memslots]
        owners += [
            (f"the struct kvm_nested_guest of L2 {nested.lpid}", nested) for nested in vm.nested
        ]
        for what, owner in owners:
            if address == owner.address:
                self._says(vm, what)
            for name, (place, size) in owner.places.items():
                if 0 <= address - place < size and place != owner.address:
                    self._says(vm, f"{name} in {what}")
        if vm.pgtable and address == vm.pgtable:
            self._says(vm, "the root of L0's table")
        for nested in vm.nested:
            if address == nested.shadow_pgtable:
                self._says(vm, f"the root of the shadow table of L2 {nested.lpid}")

    def _entries_at(self, physical: int) -> None:
        """Say which entry of a table is stored at a physical address."""
        for pages in self._chosen:
            tables = [("L0's entry for L1", pages.vm.host)]
            tables += [(f"the shadow entry of L2 {n.lpid}:", n.shadow) for n in pages.vm.nested]
            for what, table in tables:
                for row in np.flatnonzero(table.where == np.uint64(physical)):
                    self._says(pages.vm, f"{what} {int(table.address[row]):#x} is stored there")

    def _says(self, vm: Vm, text: str) -> None:
        self._found.meanings[f"VM lpid {vm.lpid}: {text}"] = None

    def _findings_shown(self) -> tuple[Finding, ...]:
        """Return the findings that name something that is shown."""
        return tuple(dict.fromkeys(self._named()))

    def _named(self) -> Iterator[Finding]:
        by_vm = {pages.vm.lpid: pages for pages in self._all}
        for l1 in self._found.l1.values():
            for slot in l1.slots:
                yield from slot.findings
                for entry in slot.entries:
                    yield from by_vm[l1.vm].named("kernel", entry.place)
        for l2 in self._found.l2.values():
            for found in (l2.host, l2.shadow):
                if found is not None:
                    yield from by_vm[l2.vm].named("physical", found.where)
            for entry in l2.entries:
                yield from by_vm[l2.vm].named("kernel", entry.place)
        for mapped_by in self._found.host.values():
            for mapping in mapped_by:
                yield from by_vm[mapping.vm].named("physical", mapping.entry.where)


def _named(memslot: Memslot) -> str:
    return f"memslot {memslot.id}"


def _of(memslot: Memslot) -> str:
    last = memslot.base_gfn + memslot.npages - 1
    return f"gfn {memslot.base_gfn:#x}..{last:#x}, rmap array at {memslot.rmap:#x}"
