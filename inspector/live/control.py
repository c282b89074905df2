"""Control of an attached, stopped machine: breakpoints, watchpoints, registers, running on.

Nothing here changes the machine's memory.  Watchpoints go to QEMU's stub as
packets, and not through GDB's own ``watch``: GDB would read the word in
whatever context the vCPU is in, and ignore writes that change nothing.
Watchpoints compare virtual addresses, in every context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from inspector.errors import InspectorError, TargetNotSupported
from inspector.live.machine import LiveMachine
from inspector.live.mi import GdbSilent

__all__ = ["Control", "Instruction"]

WRITE_WATCHPOINT = 2
INSTRUCTION = 4
OK = "OK"


class Instruction(NamedTuple):
    """An instruction: its bytes in the order of memory, and GDB's text for it."""

    data: bytes
    text: str


class Control:
    """Lets an attached machine run from stop to stop."""

    def __init__(self, machine: LiveMachine) -> None:
        self._machine = machine

    def run(self, timeout: float) -> bool:
        """Let the machine run until it stops; false if it had to be stopped after a time.

        The machine is stopped afterwards, also after Ctrl-C.

        Args:
            timeout: seconds to wait for a stop.
        """
        machine = self._machine
        machine.forget()
        try:
            machine.gdb.resume()
            machine.gdb.wait_stopped(timeout)
        except BaseException as error:
            machine.gdb.interrupt()
            if not isinstance(error, GdbSilent):
                raise
            return False
        return True

    @contextlib.contextmanager
    def watching(self, places: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Make the machine stop after every store to one of the places, for the length of a block.

        The machine is stopped afterwards, and the watchpoints are removed.

        Args:
            places: ``(address, length)`` of each place, in bytes.

        Raises:
            TargetNotSupported: the stub has no watchpoints.
        """
        placed: list[tuple[int, int]] = []
        try:
            for place in places:
                # before it is set: an interrupted request may have set it
                placed.append(place)
                if self._watchpoint("Z", *place) != OK:
                    raise TargetNotSupported(
                        f"the stub cannot watch {place[1]} bytes at {place[0]:#x}; "
                        "is it QEMU's, with TCG?"
                    )
            yield
        finally:
            for place in placed:
                with contextlib.suppress(InspectorError):
                    self._watchpoint("z", *place)

    @contextlib.contextmanager
    def breakpoints(self) -> Iterator[Callable[[int], Callable[[], None]]]:
        """Yield a function that sets a breakpoint at an address and returns one that removes it.

        They are GDB's hardware breakpoints, which write nothing and which GDB
        steps over with this one vCPU.  They compare virtual addresses, in
        every context.  After the block the machine is stopped, and all of the
        breakpoints are removed.
        """
        machine = self._machine
        placed: set[str] = set()

        def place(address: int) -> Callable[[], None]:
            answer = machine.gdb.command(f"-break-insert -h *{address:#x}").payload
            number = str(answer["bkpt"]["number"])
            placed.add(number)

            def remove() -> None:
                if number in placed:
                    machine.gdb.command(f"-break-delete {number}")
                    placed.discard(number)

            return remove

        try:
            yield place
        finally:
            with contextlib.suppress(InspectorError):
                if placed:
                    machine.gdb.command(f"-break-delete {' '.join(sorted(placed))}")

    def register(self, name: str) -> int:
        """Return a register of the vCPU that stopped, by GDB's name for it.

        Raises:
            GdbError: there is no register of this name.
        """
        answer = self._machine.gdb.command(
            f'-data-evaluate-expression "(unsigned long)${name}"'
        ).payload
        return int(answer["value"], 0) & ((1 << 64) - 1)

    def instruction(self, address: int) -> Instruction:
        """Return the instruction at an address, read in the context of the vCPU that stopped.

        Raises:
            GdbError: nothing is there in that context.
        """
        answer = self._machine.gdb.command(
            f"-data-disassemble -s {address:#x} -e {address + INSTRUCTION:#x} -- 2"
        ).payload
        row = answer["asm_insns"][0]
        text = " ".join(str(row["inst"]).split())
        return Instruction(bytes.fromhex(str(row["opcodes"]).replace(" ", "")), text)

    def _watchpoint(self, packet: str, address: int, length: int) -> str:
        return self._machine.packet(f"{packet}{WRITE_WATCHPOINT},{address:x},{length:x}")
