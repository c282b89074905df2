"""The writers of a word: every store to it in a recorded machine, newest first.

The whole recording is replayed once, with a watchpoint on the word.  This shows
every writer in the time of one replay; going backwards would take two replays
for each writer.
"""

from __future__ import annotations

from dataclasses import dataclass

from inspector.errors import BadData
from inspector.following.sweep import WORD, Hit, Stop, Sweep, Watched
from inspector.kernel.symbols import CodePlace, Symbols
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.live.control import Instruction
from inspector.live.replayed import ReplayedMachine
from inspector.options import Options
from inspector.progress import Doing, Progress, untold
from inspector.session import Acquired, attached
from inspector.structures.space import KernelSpace

__all__ = ["History", "Wanted", "Write", "history"]


@dataclass(frozen=True)
class Wanted:
    """The words to watch: the slot of a gfn, one of its entries, or a kernel address.

    ``entry`` counts in list order from 0, the newest; ``vm`` is the LPID of
    the VM, needed only if several VMs have the gfn.
    """

    gfn: int | None = None
    entry: int | None = None
    address: int | None = None
    vm: int | None = None


@dataclass(frozen=True)
class Write:
    """One store to a word.

    ``count`` is the number of instructions executed in the recording, up to and
    including the store.  ``where`` is the store itself, ``instruction`` is None if
    it could not be read; ``callers`` are return addresses, innermost first.
    ``old`` is the value that the write before it left there, or the value at the
    point from which the recording was watched.
    """

    word: int
    count: int
    where: CodePlace
    instruction: Instruction | None
    old: int
    new: int
    callers: tuple[CodePlace, ...]

    @property
    def of_kvm(self) -> bool:
        """Whether KVM wrote it, itself or through a function it called."""
        return self.where.of_kvm or any(place.of_kvm for place in self.callers)


@dataclass(frozen=True, kw_only=True)
class History:
    """Every writer that was found, newest first.

    ``writes`` are the last ``limit`` of ``total``.  ``elsewhere`` counts
    stores that hit the same virtual address but other memory, of a guest or of
    another mapping.  The recording was watched from instruction ``since`` to
    ``until``; ``end`` is the instruction at which the replay was found and left.
    """

    acquired: Acquired
    words: tuple[Watched, ...]
    writes: tuple[Write, ...]
    total: int
    elsewhere: int
    since: int
    until: int
    end: int
    seconds: float
    stopped_by: Stop | None = None

    @property
    def complete(self) -> bool:
        """Whether the recording was watched up to where the replay was found."""
        return self.stopped_by is None


def history(
    target: str,
    options: Options,
    wanted: Wanted,
    limit: int,
    since: int = 0,
    seconds: float = 300.0,
    progress: Progress = untold,
) -> History:
    """Find the writers of a word in a machine that replays a recording.

    The replay is left where it was found.  After Ctrl-C, or after ``seconds``,
    the writers found so far are returned.

    Args:
        target: gdb:HOST:PORT.
        options: how to open it.
        wanted: the word.
        limit: how many writers to keep, the last ones.
        since: the instruction count from which on to watch.
        seconds: how long to watch.
        progress: called as the work proceeds.

    Raises:
        InspectorError: the target is not a replay, or there is no such word.
    """
    with attached(target, options, progress) as attachment:
        machine = attachment.machine
        replay = ReplayedMachine(machine)
        acquired = attachment.inspect(progress)
        kernel = KernelSpace(machine.memory, acquired.profile)
        words = _words(acquired.snapshot, kernel, wanted)
        sweep = Sweep(machine, replay, kernel, words, limit, progress)
        sweep.run(since, seconds)
        progress(Doing.NAMING, "")
        symbols = Symbols(kernel)
        writes = tuple(_named(hit, symbols) for hit in reversed(sweep.hits))
    return History(
        acquired=acquired,
        words=words,
        writes=writes,
        total=sweep.total,
        elsewhere=sweep.elsewhere,
        since=since,
        until=sweep.until,
        end=sweep.end,
        seconds=sweep.seconds,
        stopped_by=sweep.stopped_by,
    )


def _words(snapshot: Snapshot, kernel: KernelSpace, wanted: Wanted) -> tuple[Watched, ...]:
    if wanted.address is not None:
        named = [("word", wanted.address)]
    else:
        named = _of_slot(snapshot, kernel, wanted)
    return tuple(
        Watched(what, address, kernel.physical(address), kernel.pointer(address))
        for what, address in named
    )


def _of_slot(snapshot: Snapshot, kernel: KernelSpace, wanted: Wanted) -> list[tuple[str, int]]:
    gfn = wanted.gfn or 0
    vms = [vm for vm in snapshot.vms if wanted.vm in (None, vm.lpid)]
    places = [(vm, address) for vm in vms for address in _slot_addresses(vm, gfn)]
    if not places:
        raise BadData(f"no memslot of a VM has gfn {gfn:#x}; `inspector vms` lists them")
    if len(places) > 1:
        lpids = ", ".join(str(vm.lpid) for vm, _ in places)
        raise BadData(f"several VMs have gfn {gfn:#x}; choose one with --vm: {lpids}")
    vm, slot = places[0]
    if wanted.entry is None:
        return [(f"slot of gfn {gfn:#x}", slot)]
    # Of vm.rmaps, "where" and "start" have one row per slot; "place" and "node" one per entry.
    rows = [row for row in range(len(vm.rmaps)) if int(vm.rmaps.where[row]) == slot]
    begin, end = (int(vm.rmaps.start[rows[0] + i]) for i in (0, 1)) if rows else (0, 0)
    if not 0 <= wanted.entry < end - begin:
        raise BadData(f"the slot of gfn {gfn:#x} has {end - begin} entries, counted from 0")
    row = begin + wanted.entry
    word = int(vm.rmaps.place[row])
    # The slot links to the first entry, the "next" of the node before to every further one.
    link = slot
    if row > begin:
        link = int(vm.rmaps.node[row - 1]) + kernel.profile.struct("rmap_nested").offset(
            "list.next"
        )
    # The last entry of a slot has no node: the link itself is its word.
    if word == link:
        return [(f"entry {wanted.entry} of gfn {gfn:#x}", word)]
    return [
        (f"entry {wanted.entry} of gfn {gfn:#x}", word),
        (f"the link to entry {wanted.entry}", link),
    ]


def _slot_addresses(vm: Vm, gfn: int) -> list[int]:
    return [
        slot.rmap + (gfn - slot.base_gfn) * WORD
        for slot in vm.memslots
        if slot.rmap and slot.base_gfn <= gfn < slot.base_gfn + slot.npages
    ]


def _named(hit: Hit, symbols: Symbols) -> Write:
    where = symbols.at(hit.pc)
    link = symbols.at(hit.link)
    callers = [symbols.at(address) for address in hit.saved]
    # In a function without a frame, LR is the caller.  With a frame, LR is the saved address, or
    # it leads into the function itself.
    here = (link.function, link.module) == (where.function, where.module)
    if link.function and not here and hit.link not in hit.saved[:1]:
        callers.insert(0, link)
    known = next((i for i, place in enumerate(callers) if not place.function), len(callers))
    return Write(
        hit.word, hit.count, where, hit.instruction, hit.old, hit.new, tuple(callers[:known])
    )
