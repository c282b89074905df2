"""The model follows a live machine in lockstep, by breakpoints.

The machine is copied while no ``mmu_lock`` is held, and then runs from one
insertion or removal to the next.  The words of a slot are read and compared
before and after each.  A breakpoint is a virtual address, so it also stops the
kernels of guests, which may have the same functions at the same addresses.  A
stop belongs to L0 if the vCPU has MSR[HV] (a powernv host) or LPIDR 0 (a
pseries host, whose guests run under other LPIDs).
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from inspector import encoding
from inspector.errors import MemoryNotReadable, TargetLost, TargetNotSupported
from inspector.following.replay import follower_of
from inspector.kernel.host import kvm_modules
from inspector.kvm.collect import collect, held_locks, vm_list
from inspector.kvm.snapshot import Snapshot
from inspector.live.control import Control
from inspector.live.machine import LiveMachine
from inspector.live.mi import GdbError
from inspector.memory.numbers import addresses
from inspector.model.events import Call, Divergence, Return, SlotWords
from inspector.model.follow import Follower
from inspector.moment import LOCK_ATTEMPTS, Again, Attempts
from inspector.options import Options
from inspector.progress import Doing, Progress, untold
from inspector.session import attached
from inspector.structures.modules import module_symbols
from inspector.structures.space import KernelSpace

__all__ = ["FUNCTIONS", "INTERRUPTED", "Trace", "trace"]

INTERRUPTED = "interrupted"
"""``Trace.ended`` after Ctrl-C."""

FUNCTIONS: Mapping[str, int] = {
    "kvmhv_insert_nest_rmap": 3,
    "kvmhv_remove_nest_rmap_range": 5,
    "kvmhv_release_all_nested": 1,
    "kvmppc_core_commit_memory_region_hv": 5,
    "kvmppc_core_free_memslot_hv": 1,
}
"""The functions that change a slot or an rmap array, and how many arguments are read of each."""

MSR_HV = 1 << 60
FIRST_ARGUMENT = 3
WORD = 8
NODES = 4096
"""How many nodes of a list are read at most, at each call."""


@dataclass(kw_only=True)
class Trace:
    """The result of following a machine.

    ``snapshot`` is the state at the beginning.  ``elsewhere`` counts stops in
    kernels of guests, which are ignored.  ``ended`` says why the trace ended.
    """

    snapshot: Snapshot
    read_path: str
    calls: Counter[str] = field(default_factory=Counter)
    returns: int = 0
    stops: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    divergence: Divergence | None = None
    ended: str = ""


def trace(
    target: str,
    options: Options,
    calls: int,
    seconds: float,
    progress: Progress = untold,
) -> Trace:
    """Follow a machine for so many calls, for so many seconds, or until Ctrl-C.

    Raises:
        InspectorError: the target cannot be followed.
    """
    with attached(target, options, progress) as attachment:
        machine = attachment.machine
        if machine.replays:
            raise TargetNotSupported(f"{target} replays a recording; use 'inspector history'")
        if machine.keep_stopped:
            raise TargetNotSupported(
                f"the machine at {target} was already stopped, so there are no calls to follow; "
                f"'inspector resume {target}' lets it run"
            )
        kernel = KernelSpace(machine.memory, attachment.known.profile)
        with machine.for_reading():
            vms = vm_list(kernel)
            if vms is None:
                raise TargetNotSupported("the list of VMs was not found in the target")
            entries = _entries(kernel)
        with _standing_still(machine, kernel, vms):
            snapshot = collect(kernel, vms)
            found = Trace(snapshot=snapshot, read_path=machine.read_path)
            run = _Run(machine, kernel, follower_of(snapshot, tables=False), found)
            try:
                run.follow(entries, calls, seconds, progress)
            except KeyboardInterrupt:
                found.ended = INTERRUPTED
    return found


@contextlib.contextmanager
def _standing_still(machine: LiveMachine, kernel: KernelSpace, vms: int) -> Iterator[None]:
    """Stop the machine for a block, at a moment when no ``mmu_lock`` is held."""
    attempts = Attempts()
    while True:
        with machine.stopped():
            if not held_locks(kernel, vms):
                yield
                return
        if attempts.last:
            break
        attempts.again(Again.LOCKED)
    raise TargetLost(
        f"mmu_lock was held at each of {LOCK_ATTEMPTS} stops, so there is no consistent state to "
        "begin with; try again"
    )


def _entries(kernel: KernelSpace) -> dict[int, str]:
    """Return the names of the functions by the address at which each is entered."""
    symbols = module_symbols(kernel, kvm_modules(kernel)["kvm_hv"])
    found = {}
    for name in FUNCTIONS:
        places = symbols.entries(name)
        if len(places) != 1:
            raise TargetNotSupported(
                f"kvm_hv of the target has {len(places)} functions with the name {name}, "
                "so its calls cannot be followed"
            )
        found[places[0][0]] = name
    return found


@dataclass
class _Open:
    """A call that has not returned: its return address, and r1 at its entry."""

    number: int
    function: str
    arguments: tuple[int, ...]
    back: int
    sp: int
    remove: Callable[[], None]


class _Run:
    """Runs one machine from stop to stop."""

    def __init__(
        self, machine: LiveMachine, kernel: KernelSpace, follower: Follower, found: Trace
    ) -> None:
        self._control = Control(machine)
        self._kernel, self._follower, self._found = kernel, follower, found
        self._open: list[_Open] = []

    def follow(
        self, entries: Mapping[int, str], calls: int, seconds: float, progress: Progress
    ) -> None:
        """Run until so many calls have returned, the time is over, or model and kernel differ."""
        found = self._found
        began = time.monotonic()
        with self._control.breakpoints() as place:
            for address in entries:
                place(address)
            while True:
                found.seconds = time.monotonic() - began
                if found.divergence is not None:
                    found.ended = "divergence"
                elif found.returns >= calls:
                    found.ended = "calls"
                elif found.seconds >= seconds or not self._control.run(seconds - found.seconds):
                    found.ended = "time"
                if found.ended:
                    found.seconds = time.monotonic() - began
                    return
                progress(Doing.FOLLOWING, f"{found.returns} have returned")
                self._stopped(entries, place)
                if found.divergence is not None:
                    self._see_that_it_is_there()

    def _stopped(
        self, entries: Mapping[int, str], place: Callable[[int], Callable[[], None]]
    ) -> None:
        """Handle one stop: calls that return there, and a call that begins there."""
        found, control = self._found, self._control
        found.stops += 1
        if not control.register("msr") & MSR_HV and control.register("lpidr"):
            found.elsewhere += 1
            return
        pc, sp = control.register("pc"), control.register("r1")
        # Other calls may pass the same return address, but only this one with its stack pointer.
        for opened in [opened for opened in self._open if (opened.back, opened.sp) == (pc, sp)]:
            self._open.remove(opened)
            opened.remove()
            found.returns += 1
            result = control.register(f"r{FIRST_ARGUMENT}")
            event = Return(opened.number, result, {}, self._slots(opened))
            found.divergence = found.divergence or self._follower.follow(event)
        if pc in entries and found.divergence is None:
            name = entries[pc]
            back = control.register("lr")
            # QEMU now and then stops twice for one call, before its first instruction.
            if any((was.function, was.back, was.sp) == (name, back, sp) for was in self._open):
                return
            found.calls[name] += 1
            arguments = tuple(
                control.register(f"r{FIRST_ARGUMENT + i}") for i in range(FUNCTIONS[name])
            )
            opened = _Open(found.calls.total(), name, arguments, back, sp, place(back))
            self._open.append(opened)
            values = self._values(opened)
            call = Call(opened.number, name, arguments, None, values, self._slots(opened))
            found.divergence = self._follower.follow(call)

    def _see_that_it_is_there(self) -> None:
        """Raise TargetLost if the machine has ended: the words it could not give prove nothing."""
        try:
            self._control.register("pc")
        except GdbError as error:
            raise TargetLost(f"the machine's QEMU has ended: {error}") from error

    def _values(self, opened: _Open) -> dict[str, int | None]:
        """Return the words that the model needs of a call."""
        kernel, arguments = self._kernel, opened.arguments
        if opened.function == "kvmhv_insert_nest_rmap":
            node = self._read(arguments[2])
            offset = kernel.profile.struct("rmap_nested").offset("rmap")
            return {"node": node, "word": node and self._read(node + offset)}
        if opened.function == "kvmhv_remove_nest_rmap_range":
            return self._memslot(arguments[1])
        if opened.function == "kvmppc_core_free_memslot_hv":
            return self._memslot(arguments[0])
        if opened.function == "kvmppc_core_commit_memory_region_hv":
            # The new memslot is the third argument, before Linux 5.17 the fourth.
            return self._memslot(arguments[2], "third_") | self._memslot(arguments[3], "fourth_")
        return {}

    def _memslot(self, memslot: int, prefix: str = "") -> dict[str, int | None]:
        layout = self._kernel.profile.struct("kvm_memory_slot")
        members = {"base_gfn": "base_gfn", "npages": "npages", "rmap": "arch.rmap"}
        places = {f"{prefix}{name}": memslot + layout.offset(m) for name, m in members.items()}
        return {name: self._read(place) for name, place in places.items()}

    def _slots(self, opened: _Open) -> dict[int, SlotWords]:
        """Return the slots that a call concerns, as they are in memory now."""
        arguments = opened.arguments
        if opened.function == "kvmhv_insert_nest_rmap":
            return {arguments[1]: self._slot(arguments[1])}
        if opened.function != "kvmhv_remove_nest_rmap_range":
            return {}
        _, memslot, gpa, _, size = arguments
        values = self._memslot(memslot)
        base_gfn, rmap = values["base_gfn"], values["rmap"]
        if base_gfn is None or rmap is None:
            return {}
        shift = self._kernel.profile.page_shift
        first = rmap + WORD * ((gpa >> shift) - base_gfn)
        places = range(first, first + WORD * (size >> shift), WORD)
        words, present = self._kernel.words(addresses(list(places)))
        # One row per slot of the range: its address, its word, and whether the word could be read.
        return {
            place: self._slot(place)
            for place, word, there in zip(places, words.tolist(), present.tolist(), strict=True)
            if word or not there
        }

    def _slot(self, place: int) -> SlotWords:
        """Return the word of a slot, and link and word of each node of its list."""
        layout = self._kernel.profile.struct("rmap_nested")
        link = self._read(place)
        found = [link]
        while link and encoding.form_of(link) is encoding.SlotForm.LIST and len(found) < 2 * NODES:
            node = link
            link = self._read(node + layout.offset("list.next"))
            found += (link, self._read(node + layout.offset("rmap")))
        return tuple(found)

    def _read(self, address: int) -> int | None:
        with contextlib.suppress(MemoryNotReadable):
            return self._kernel.pointer(address)
        return None
