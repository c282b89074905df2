"""No guest can reach a page that holds the host's own data."""

from __future__ import annotations

from collections.abc import Iterator

from inspector import pte
from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Severity, Unjudged
from inspector.checks.view import CheckedHost, CheckedVm
from inspector.kvm.snapshot import Part
from inspector.structures.radix import LeafTable

ID = "leaf-kernel-page"
SHOWN = 3


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield the leaves of L0's and shadow tables that map a page with the host's own data."""
    host = checked.whole
    if host is None:
        return
    for name, table in checked.tables:
        for row in host.known.met_by(table):
            yield from _judge(checked, host, name, table, int(row))


def _judge(
    checked: CheckedVm, host: CheckedHost, name: str, table: LeafTable, row: int
) -> Iterator[Finding]:
    entry, shift = int(table.entry[row]), int(table.shift[row])
    frame = pte.frame_of(entry, shift)
    if frame == host.snapshot.host.zero_page and not entry & pte.WRITE:
        return
    things = host.known.things_in(frame, 1 << shift)
    first, *others = dict.fromkeys(thing.group.what for thing in things)
    yield Finding(
        invariant=ID,
        vm_lpid=checked.vm.lpid,
        summary=f"{name} maps {int(table.address[row]):#x} to {frame:#x}, where the host has "
        f"{first}" + (f", and {len(others)} other things" if others else ""),
        expected="a page of the VM's process, which the kernel uses for nothing else",
        evidence=(
            Evidence("leaf", "physical", int(table.where[row]), entry, pte.describe(entry, shift)),
            *(thing.evidence for thing in things[:SHOWN]),
        ),
    )


def rests(checked: CheckedHost) -> Iterator[Unjudged]:
    """Yield what is not known of the host's own memory in this target."""
    host = checked.snapshot.host
    names = {region.symbol for region in host.regions}
    if checked.snapshot.vms and (host.zero_page is None or not {"_stext", "__init_end"} <= names):
        yield Unjudged(
            "leaves that map the kernel's image",
            "the layout of this kernel was taken without _stext, __init_begin, __init_end, _end "
            "and empty_zero_page",
        )


INVARIANT = Invariant(
    id=ID,
    statement="No leaf, of L0's table or of a shadow table, maps a page that holds a page table, "
    "the partition table, struct kvm, a memslot, a nested guest, an rmap array, a list node, or a "
    "part of the kernel's image that is never freed. The kernel's page of zeros may be mapped "
    "without permission to write. Two VMs may map one page of memory: processes share pages (KSM, "
    "shared memory, the page of zeros), so that is no breach.",
    why="A guest that has such a page can read or change the host's own data, and through it "
    "any memory of the host.",
    source="kvmppc_book3s_instantiate_page, __kvmhv_nested_page_fault, free_initmem",
    severity=Severity.MEMORY_SAFETY,
    find=find,
    reads=frozenset({Part.HOST, Part.NESTED, Part.SHADOW}),
    rests_host=rests,
)
