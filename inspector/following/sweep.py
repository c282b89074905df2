"""One run through a recording with words watched: every store that reached one of them.

A hit of the watchpoint counts only if the store reached the watched bytes
themselves: the physical address must be the same, and the vCPU must have been
in the host.
"""

from __future__ import annotations

import contextlib
import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inspector.errors import BadData, InspectorError, TargetLost
from inspector.following.stores import stored_range
from inspector.live.control import Instruction
from inspector.live.machine import LiveMachine
from inspector.live.mi import GdbError
from inspector.live.replayed import ReplayedMachine, ReplayStuck
from inspector.memory.numbers import integer
from inspector.progress import Doing, Progress
from inspector.regions import LINEAR_MAP
from inspector.structures.space import KernelSpace

__all__ = ["WORD", "Hit", "Stop", "Sweep", "Watched"]

WORD = 8
INSTRUCTION = 4
MSR_HV = 1 << 60
FRAMES = 16
"""How many callers of a store are looked for on the stack."""
LR_SAVE = 16
"""Offset in a caller's frame of the return address that the callee saves (64-bit ELF ABI)."""
RETURN_SECONDS = 3600.0
"""Seconds that the replay may take to get back to where it was found."""
ATTEMPTS = 3
"""How often the recording is replayed from its beginning if the replay gets stuck."""


class Stop(enum.Enum):
    """Why a recording was not watched to the end."""

    TIME = "the time limit"
    INTERRUPTED = "Ctrl-C"


@dataclass(frozen=True)
class Watched:
    """A watched word: its kernel address, its physical address, and its value now."""

    what: str
    address: int
    physical: int
    value: int


@dataclass(frozen=True)
class Hit:
    """A write as it was found, before its addresses have names."""

    word: int
    count: int
    pc: int
    instruction: Instruction | None
    old: int
    new: int
    link: int
    saved: tuple[int, ...]


class Sweep:
    """One run through the recording with the words watched."""

    def __init__(
        self,
        machine: LiveMachine,
        replay: ReplayedMachine,
        kernel: KernelSpace,
        words: tuple[Watched, ...],
        limit: int,
        progress: Progress,
    ) -> None:
        self._machine, self._replay, self._kernel = machine, replay, kernel
        self._words, self._progress = words, progress
        self.hits: deque[Hit] = deque(maxlen=limit)
        self.total = self.elsewhere = 0
        self.end = self.until = replay.position
        self.seconds = 0.0
        self.stopped_by: Stop | None = None
        self._values: list[int] = []

    def run(self, since: int, seconds: float) -> None:
        """Replay from the beginning to where the replay was found."""
        if not 0 <= since < self.end:
            raise BadData(
                f"the replay is at instruction {self.end}, so nothing can be watched from {since} "
                "on; give an earlier --since"
            )
        began = time.monotonic()
        try:
            self._from_the_beginning(lambda: self._watch(since, began + seconds))
        except KeyboardInterrupt:
            self.stopped_by = Stop.INTERRUPTED
        finally:
            self._return()
        self.seconds = time.monotonic() - began

    def _from_the_beginning(self, replaying: Callable[[], object]) -> None:
        """Replay from the beginning; if the replay gets stuck, which is rare, try it again."""
        for attempt in range(1, ATTEMPTS + 1):
            self._progress(Doing.REWINDING, "")
            self._replay.rewind()
            try:
                replaying()
                return
            except ReplayStuck:
                if attempt == ATTEMPTS:
                    raise

    def _watch(self, since: int, deadline: float) -> None:
        replay = self._replay
        self.hits.clear()
        self.total = self.elsewhere = 0
        self.until = replay.position
        self._progress(Doing.REPLAYING, "")
        if since and not replay.run_to(since, deadline):
            self.stopped_by = Stop.TIME
            return
        self._values = [self._at(word) for word in self._words]
        # The replay must not run past the place to which it has to return.
        replay.stop_at(self.end)
        with replay.control.watching(sorted(set(self._places()))):
            while True:
                went = replay.run(deadline)
                self.until = replay.position
                if self.until >= self.end:
                    return
                if not went:
                    self.stopped_by = Stop.TIME
                    return
                self._note()
                self._progress(
                    Doing.REPLAYING,
                    f"{self.total} writes up to instruction {self.until} of {self.end}",
                )

    def _return(self) -> None:
        """Leave the replay where it was found."""
        self._replay.settle()
        if self._replay.position >= self.end:
            return
        self._progress(Doing.RETURNING, "")

        def on() -> None:
            if not self._replay.run_to(self.end, time.monotonic() + RETURN_SECONDS):
                raise TargetLost(
                    f"the replay is at instruction {self._replay.position}, and did not come back "
                    f"to {self.end}, where it was found, in {RETURN_SECONDS:.0f} s; record anew"
                )

        try:
            on()
        except ReplayStuck:
            self._from_the_beginning(on)

    def _places(self) -> list[tuple[int, int]]:
        """Return each word by its own address and by its address in the linear map.

        The kernel clears a page through the linear map.
        """
        own = [(word.address, WORD) for word in self._words]
        return own + [(LINEAR_MAP | word.physical, WORD) for word in self._words]

    def _at(self, word: Watched) -> int:
        memory, order = self._kernel.memory, self._kernel.profile.byte_order
        return integer(memory.read(word.physical, WORD), order)

    def _note(self) -> None:
        """Look at the store that the machine has just executed."""
        register = self._replay.control.register
        pc = register("pc") - INSTRUCTION
        instruction = None
        with contextlib.suppress(GdbError):
            instruction = self._replay.control.instruction(pc)
        values = [self._at(word) for word in self._words]
        index = None if self._in_guest() else self._written(instruction, values)
        if index is None:
            self.elsewhere += 1
        else:
            self.total += 1
            self.hits.append(
                Hit(
                    index,
                    self.until,
                    pc,
                    instruction,
                    self._values[index],
                    values[index],
                    register("lr"),
                    self._saved(register("r1")),
                )
            )
        self._values = values

    def _in_guest(self) -> bool:
        """Say whether the vCPU runs a guest of the host.

        If QEMU is the hypervisor, the host itself runs without MSR[HV], and only
        its guests have an LPID other than 0.
        """
        register = self._replay.control.register
        return not register("msr") & MSR_HV and register("lpidr") != 0

    def _written(self, instruction: Instruction | None, values: Sequence[int]) -> int | None:
        """Return the index of the word that was written, None if it was other memory."""
        found = instruction and stored_range(instruction.text, self._replay.control.register)
        for index, word in enumerate(self._words):
            # If the instruction does not say where it stored, a changed value has to.
            if found is None:
                if values[index] != self._values[index]:
                    return index
            elif self._reaches(found, word):
                return index
        return None

    def _reaches(self, stored: tuple[int, int], word: Watched) -> bool:
        """Say whether a store to an address and length hit the bytes of a word."""
        for address in {word.address, LINEAR_MAP | word.physical}:
            if address - stored[1] < stored[0] < address + WORD:
                try:
                    return self._kernel.physical(address) == word.physical
                except InspectorError:
                    return False
        return False

    def _saved(self, frame: int) -> tuple[int, ...]:
        """Return the return addresses that the stack frames hold, innermost first."""
        found: list[int] = []
        with contextlib.suppress(InspectorError):
            while len(found) < FRAMES:
                caller = self._kernel.pointer(frame)
                # The stack grows downwards, so a chain that does not lead upwards has ended.
                if caller <= frame:
                    break
                found.append(self._kernel.pointer(caller + LR_SAVE))
                frame = caller
        return tuple(found)
