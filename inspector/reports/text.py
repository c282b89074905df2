"""Reports for people."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from inspector import encoding, hash_encoding, pte
from inspector.checks.findings import Evidence, Finding
from inspector.checks.verdict import NODE_SIZE, Judgement, VmJudgement
from inspector.checks.view import STATES, CheckedVm
from inspector.errors import printable
from inspector.kvm.snapshot import HashRmaps, HashSlot, Part, RingProblem, Rmaps, Snapshot, Vm
from inspector.session import Acquired, Origin

__all__ = [
    "ENTRIES_SHOWN",
    "check_report",
    "finding_lines",
    "hash_problems",
    "opened",
    "rmap_report",
    "table",
    "vms_report",
]

FINDINGS_SHOWN = 20
ENTRIES_SHOWN = 12
NOT_KNOWN = "not known: what it may lead to could not be read"


def table(heading: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(heading), *cells]) for i in range(len(heading))]
    right = [
        bool(rows) and all(isinstance(row[i], int) for row in rows) for i in range(len(widths))
    ]
    for row in [list(heading), *cells]:
        yield "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()


def opened(snapshot: Snapshot, origin: Origin) -> Iterator[str]:
    """Yield what is known of the target itself."""
    yield (
        f"Linux {snapshot.release}, {pte.size_name(snapshot.page_shift)} pages, "
        f"build ID {snapshot.build_id or 'none'}"
    )
    yield f"read from {origin.read_path}"
    if origin.layout:
        yield f"kernel described by {origin.layout}"
    if origin.found_stopped:
        yield "the machine was stopped when it was found, and was left so"
    elif origin.stopped_seconds is not None:
        tries = f", {origin.attempts} tries for a whole copy" if origin.attempts > 1 else ""
        yield (
            f"machine stopped for {origin.stopped_seconds * 1000:.1f} ms "
            f"in {origin.stops} stops{tries}"
        )
    for key, value in (origin.facts or {}).items():
        yield f"{printable(key)}: {printable(value)}"


def check_report(acquired: Acquired, judgement: Judgement) -> Iterator[str]:
    """Yield the lines of ``inspector check``."""
    yield from opened(acquired.snapshot, acquired.origin)
    yield ""
    if not judgement.vms:
        yield from _without_vms(acquired.snapshot)
    else:
        yield from table(
            (
                "VM",
                "verdict",
                "slots",
                "entries",
                "singles",
                "lists",
                "longest",
                "live",
                "stale",
                "shadow leaves",
                "findings",
            ),
            [_check_row(vm) for vm in judgement.vms],
        )
    if judgement.host_findings or judgement.host_doubts:
        yield ""
        yield "host:"
        yield from _findings(judgement.host_findings, judgement.host_doubts)
    for vm in judgement.vms:
        yield from _check_details(vm)
    if judgement.notes:
        yield ""
    yield from (f"note: {note}" for note in judgement.notes)
    yield ""
    yield from _basis(judgement)
    yield f"verdict: {judgement.verdict.value}"


def _basis(judgement: Judgement) -> Iterator[str]:
    """Yield the line that says what the verdict rests on, and the line of what was not judged."""
    basis = judgement.basis
    yield f"basis: {basis.words} words, of which a second word confirms {basis.confirmed}"
    names = {item.invariant.id for vm in judgement.vms for item in vm.not_judged}
    names |= {invariant for invariant, _ in basis.unjudged}
    reasons = [item.gap.text for vm in judgement.vms for item in vm.not_judged]
    reasons += [f"{item.what} ({item.why})" for _, item in basis.unjudged]
    if names:
        first, *others = dict.fromkeys(reasons)
        more = f", and {len(others)} more" if others else ""
        yield f"not judged, or in part: {', '.join(sorted(names))}: {first}{more}"


def _without_vms(snapshot: Snapshot) -> Iterator[str]:
    yield "No VM could be read." if snapshot.gaps else "KVM-HV is loaded and has no VMs."


def _check_row(vm: VmJudgement) -> tuple[object, ...]:
    counts = vm.counts
    return (
        f"lpid {vm.vm.lpid}",
        vm.verdict.value,
        counts.slots,
        counts.entries,
        counts.singles,
        counts.lists,
        counts.longest,
        counts.live,
        sum(counts.stale.values()),
        counts.shadow_leaves,
        len(vm.findings),
    )


def _check_details(vm: VmJudgement) -> Iterator[str]:
    lines = [f"{count} stale: {state.value}" for state, count in vm.counts.stale.items()]
    if vm.counts.unknown:
        lines.append(f"{vm.counts.unknown} {NOT_KNOWN}")
    lines += [
        f"{item.count} pending: {item.invariant.id}: {item.invariant.passing.reason}"
        for item in vm.pending
        if item.invariant.passing
    ]
    lines += _lists(vm)
    lines += [f"note: {note}" for note in vm.notes]
    lines += _not_judged(vm)
    if lines or vm.findings or vm.doubts:
        yield ""
        yield f"VM lpid {vm.vm.lpid}:"
    yield from (f"  {line}" for line in lines)
    yield from _findings(vm.findings, vm.doubts)


def _findings(findings: Sequence[Finding], doubts: Sequence[Finding]) -> Iterator[str]:
    """Yield the first findings and the first doubts, each with the words that show it."""
    for kind, found in (("finding", findings), ("doubt", doubts)):
        for number, finding in enumerate(_first_of(found), 1):
            yield from finding_lines(number, finding, kind)
        if len(found) > FINDINGS_SHOWN:
            yield f"  ... and {len(found) - FINDINGS_SHOWN} more {kind}s (--json shows all)"


def _lists(vm: VmJudgement) -> Iterator[str]:
    """Yield what the lists cost the kernel."""
    counts = vm.counts
    if not counts.nodes:
        return
    size = counts.nodes * NODE_SIZE
    pages = "one page" if counts.node_pages == 1 else f"{counts.node_pages} pages"
    yield f"{counts.nodes} list nodes, {size} bytes in {pages} of kernel memory"
    longest = ", ".join(f"{entries} of gfn {gfn:#x}" for gfn, entries in counts.longest_lists)
    yield f"entries that the next insertion walks, in the longest lists: {longest}"


def _not_judged(vm: VmJudgement) -> Iterator[str]:
    """Yield what could not be read, and which invariants could not be judged because of that."""
    for gap in dict.fromkeys(item.gap for item in vm.not_judged):
        for at_all, how in ((False, "not judged"), (True, "judged in part")):
            names = [
                item.invariant.id
                for item in vm.not_judged
                if item.gap == gap and item.at_all is at_all
            ]
            if names:
                yield f"{how}: {', '.join(names)}: {gap.text}"


def _first_of(found: Sequence[Finding]) -> list[Finding]:
    """Return as many findings as are shown, beginning with one of each invariant.

    One cause can break an invariant in many places, while only the finding of
    another invariant names the cause.
    """
    first: dict[str, Finding] = {}
    for finding in found:
        first.setdefault(finding.invariant, finding)
    others = (finding for finding in found if first[finding.invariant] is not finding)
    return list(itertools.islice(itertools.chain(first.values(), others), FINDINGS_SHOWN))


def finding_lines(number: int, finding: Finding, kind: str = "finding") -> Iterator[str]:
    """Yield a finding with every word that shows it."""
    yield f"  {kind} {number}: {finding.invariant}: {finding.summary}"
    yield f"    expected: {finding.expected}"
    if finding.doubt:
        yield f"    may be legal: {finding.doubt}"
    rows = [
        (
            f"    {item.what}",
            _place(item),
            "" if item.value is None else f"{item.value:#018x}",
            item.meaning,
        )
        for item in finding.evidence
    ]
    yield from list(table(("",) * 4, rows))[1:]


def _place(item: Evidence) -> str:
    return f"{item.space} {item.address:#x}" if item.address else ""


def vms_report(acquired: Acquired, *, memslots: bool = True) -> Iterator[str]:
    """Yield the lines of ``inspector vms``, with the memslots if ``memslots`` is set."""
    snapshot = acquired.snapshot
    yield from opened(snapshot, acquired.origin)
    if not snapshot.vms:
        yield ""
        yield from _without_vms(snapshot)
    for vm in snapshot.vms:
        yield ""
        yield from _vm(vm, snapshot.page_shift, memslots=memslots)
    if snapshot.gaps:
        yield ""
    yield from _unread(snapshot)


def _unread(snapshot: Snapshot) -> Iterator[str]:
    yield from (f"note: not read: {gap.text}" for gap in snapshot.gaps)


def _vm(vm: Vm, page_shift: int, *, memslots: bool) -> Iterator[str]:
    mmu = "radix" if vm.radix else "hash"
    process = "not known" if vm.pid is None else vm.pid
    nesting = "nesting enabled" if vm.nesting else "nesting not enabled"
    yield (
        f"VM lpid {vm.lpid}: struct kvm at {vm.address:#x}, process {process}, {mmu}, {nesting}, "
        f"L1 partition table {vm.l1_ptcr:#x}"
        + (f", mmu_lock held ({vm.mmu_lock:#x})" if vm.locked else "")
    )
    if memslots:
        yield from (f"  {line}" for line in _memslots(vm, page_shift))
    if memslots and vm.nested:
        yield ""
    if vm.nested:
        yield from (f"  {line}" for line in _nested(vm))
    for gap in vm.gaps:
        yield f"  note: {gap.text}"


def _memslots(vm: Vm, page_shift: int) -> Iterator[str]:
    return table(
        ("memslot", "first gfn", "pages", "L1 addresses", "rmap array"),
        [
            (
                slot.id,
                f"{slot.base_gfn:#x}",
                slot.npages,
                f"{slot.base_gfn << page_shift:#x}.."
                f"{((slot.base_gfn + slot.npages) << page_shift) - 1:#x}",
                f"{slot.rmap:#x}",
            )
            for slot in vm.memslots
        ],
    )


def _nested(vm: Vm) -> Iterator[str]:
    return table(
        (
            "L1 LPID",
            "shadow LPID",
            "refs",
            "shadow leaves",
            "L1 leaves",
            "shadow table",
            "L1 partition entry",
        ),
        [
            (
                nested.lpid,
                nested.shadow_lpid,
                nested.refcnt,
                len(nested.shadow),
                "none" if nested.l1 is None else len(nested.l1),
                f"{nested.shadow_pgtable:#x}",
                f"{nested.l1_gr_to_hr:#x}",
            )
            for nested in vm.nested
        ],
    )


def rmap_report(
    snapshot: Snapshot, *, everything: bool, gfns: Collection[int] = ()
) -> Iterator[str]:
    """Yield the lines of ``inspector rmap``: every slot, every entry with its state.

    Args:
        snapshot: what was read.
        everything: show long lists whole.
        gfns: show the slots of these L1 pages only, and say why a page has none.
    """
    for vm in snapshot.vms:
        if not vm.radix:
            yield from _hash_rmaps(vm, everything=everything, gfns=gfns)
            continue
        checked = CheckedVm(vm, snapshot.page_shift)
        yield f"VM lpid {vm.lpid}: {len(vm.rmaps)} slots, {vm.rmaps.word.size} entries"
        yield from (f"  note: {gap.text}" for gap in vm.gaps)
        yield from _without_slot(vm, vm.rmaps, gfns)
        for index, slot in enumerate(vm.rmaps):
            if gfns and slot.gfn not in gfns:
                continue
            form = encoding.form_of(slot.head)
            count = len(slot.words)
            yield f"  gfn {slot.gfn:#x}  {form.value}" + (f" of {count}" if count > 1 else "")
            shown = count if everything else min(count, ENTRIES_SHOWN)
            first = int(vm.rmaps.start[index])
            for i in range(shown):
                entry = encoding.decode(int(slot.words[i]))
                meaning = _meaning(checked, first + i)
                at = f" node {int(slot.nodes[i]):#x}" if slot.nodes[i] else ""
                yield (
                    f"    {int(slot.words[i]):#018x}  L2 {entry.lpid}:{entry.gpa:#x}  {meaning}{at}"
                )
            if shown < count:
                yield f"    ... {count - shown} more (--all shows them)"
    yield from _unread(snapshot)


def _without_slot(vm: Vm, rmaps: Rmaps | HashRmaps, gfns: Collection[int]) -> Iterator[str]:
    """Yield what is known of the L1 pages in ``gfns`` whose slot holds no word."""
    whole = all(gap.part is not Part.MEMSLOTS for gap in vm.gaps)
    for gfn in sorted(set(gfns) - set(rmaps.gfn.tolist())):
        if not any(slot.base_gfn <= gfn < slot.base_gfn + slot.npages for slot in vm.memslots):
            yield f"  gfn {gfn:#x}  in no memslot" + ("" if whole else " that could be read")
        elif any(first <= gfn < first + pages for first, pages in rmaps.unread):
            yield f"  gfn {gfn:#x}  not read"
        else:
            yield f"  gfn {gfn:#x}  empty"


def _meaning(checked: CheckedVm, entry: int) -> str:
    if checked.unknown[entry]:
        return NOT_KNOWN
    state = STATES[int(checked.state[entry])]
    return state.value if state is STATES[0] else f"stale: {state.value}"


def _hash_rmaps(vm: Vm, *, everything: bool, gfns: Collection[int]) -> Iterator[str]:
    rmaps = vm.hash_rmaps
    yield f"VM lpid {vm.lpid}: hash MMU, {len(rmaps)} slots, {rmaps.index.size} HPT entries"
    yield from (f"  note: {gap.text}" for gap in vm.gaps)
    yield from _without_slot(vm, rmaps, gfns)
    for slot in rmaps:
        if gfns and slot.gfn not in gfns:
            continue
        word = hash_encoding.decode(slot.word)
        count = slot.indices.size
        if word.index is None:
            form = "no HPT entry"
        elif rmaps.followed:
            form = f"ring of {count}" if count > 1 else "single"
        else:
            form = "ring, not followed"
        kept = (("referenced", word.referenced), ("changed", word.changed), ("locked", word.locked))
        yield f"  gfn {slot.gfn:#x}  " + ", ".join(
            [form, *(name for name, is_set in kept if is_set)]
        )
        shown = count if everything else min(count, ENTRIES_SHOWN)
        indices = ", ".join(f"{int(index):#x}" for index in slot.indices[:shown])
        yield f"    {slot.word:#018x}" + (f"  HPT {indices}" if shown else "")
        if shown < count:
            yield f"    ... {count - shown} more (--all shows them)"
        yield from (f"    {problem}" for problem in hash_problems(slot))


def hash_problems(slot: HashSlot) -> list[str]:
    """Say what is wrong with a hash guest's word and with its ring."""
    return hash_encoding.problems(slot.word) + [_ring_problem(one) for one in slot.problems]


def _ring_problem(problem: RingProblem) -> str:
    text = {
        "range": "is no entry of the HPT",
        "unreadable": "has links that are not readable",
        "back": "is named by the back link of an entry that was not reached from it",
    }[problem.kind]
    return f"the ring is broken: HPT index {problem.index:#x} at {problem.place:#x} {text}"
