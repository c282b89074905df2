"""The steps from a target to its VMs: the findings of each, and the first problem.

Nothing is tried here that an inspection would not do: the target is opened
as for ``inspector check``, and the steps are derived from the result, or from
the step that failed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from inspector import pte
from inspector.errors import InspectorError, Stage, TargetNotSupported
from inspector.kvm.snapshot import Snapshot, Vm
from inspector.live.ahead import LIVE_PREFIX, address_of
from inspector.live.gdb import protections
from inspector.live.processes import place_of, process_behind
from inspector.options import Options
from inspector.progress import Doing, Progress, untold
from inspector.session import Acquired, acquire

__all__ = ["Diagnosis", "Observation", "StepOutcome", "diagnose"]

PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
OF_LIVE = (
    Stage.GDB,
    Stage.PORT,
    Stage.QEMU,
    Stage.POWER,
    Stage.KERNEL,
    Stage.RADIX,
    Stage.TYPES,
    Stage.KVM,
    Stage.STATE,
)
OF_FILE = (Stage.FORMAT, Stage.POWER, *OF_LIVE[4:])

NEXT = {
    Stage.GDB: "install GDB for all architectures (Debian: apt install gdb-multiarch)",
    Stage.PORT: "start QEMU with '-gdb tcp:127.0.0.1:PORT', or type 'gdbserver tcp:127.0.0.1:PORT' "
    "in the monitor of a running one; detach any other GDB; forward the port of another host with "
    "'ssh -L PORT:127.0.0.1:PORT HOST'",
    Stage.QEMU: "give the port of a QEMU of version 4.1 or later",
    Stage.FORMAT: "give a capture of this tool, an ELF core, a kdump-compressed dump, "
    "raw:FILE@0xADDRESS or split:FILE,FILE; a live machine is gdb:HOST:PORT",
    Stage.POWER: "attach to the qemu-system-ppc64 that runs the KVM-HV host, or take a dump of it",
    Stage.KERNEL: "wait until the machine has booted Linux; if it has, give its vmlinux with "
    "--kernel and its modules with --modules",
    Stage.RADIX: "boot the host on POWER9 or later and without 'disable_radix'",
    Stage.TYPES: "give --debug-file with the debug file of the loaded kvm-hv.ko, or --layout with "
    "a profile that 'inspector layout' made for this build",
    Stage.KVM: "load it in the host: modprobe kvm_hv",
    Stage.STATE: "try again; if it fails again, take a capture or a dump and see what it is "
    "missing",
}
"""What the user can do about a step that fails."""


class StepOutcome(enum.Enum):
    """The outcome of a step; a remark does not prevent an inspection."""

    OK = "ok"
    REMARK = "remark"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True)
class Observation:
    """One step: what was found, and what the user can do if that is not enough."""

    step: str
    outcome: StepOutcome
    found: str = ""
    next: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All steps of a target in order."""

    target: str
    observations: tuple[Observation, ...]

    @property
    def usable(self) -> bool:
        """Whether the target can be inspected."""
        return all(
            item.outcome in (StepOutcome.OK, StepOutcome.REMARK) for item in self.observations
        )


REACHED = {
    Doing.ATTACHING: Stage.PORT,
    Doing.OPENING: Stage.FORMAT,
    Doing.DESCRIBING: Stage.TYPES,
    Doing.READING: Stage.STATE,
    Doing.DECODING: Stage.STATE,
}
"""The step that failed, for an error that names none: by the activity that was under way."""


def diagnose(target: str, options: Options, progress: Progress = untold) -> Diagnosis:
    """Take the steps from a target to its VMs until one fails; never raises for bad input."""
    live = target.startswith(LIVE_PREFIX)
    steps = OF_LIVE if live else OF_FILE
    last = Doing.ATTACHING if live else Doing.OPENING

    def noted(doing: Doing, detail: str) -> None:
        nonlocal last
        last = doing
        progress(doing, detail)

    try:
        acquired = acquire(target, options, noted)
    except InspectorError as error:
        failed = error.step if isinstance(error, TargetNotSupported) else None
        return Diagnosis(target, _ended(steps, failed or REACHED[last], error))
    seen = _of_live(target, acquired) if live else _of_file(acquired)
    return Diagnosis(target, (*seen, *_of_kernel(acquired), *_of_state(acquired.snapshot)))


def _ended(
    steps: tuple[Stage, ...], failed: Stage, error: InspectorError
) -> tuple[Observation, ...]:
    at = steps.index(failed)
    return (
        *(Observation(step.value, StepOutcome.OK) for step in steps[:at]),
        Observation(failed.value, StepOutcome.FAILED, str(error), NEXT[failed]),
        *(Observation(step.value, StepOutcome.NOT_REACHED) for step in steps[at + 1 :]),
    )


def _ok(step: Stage, found: str) -> Observation:
    return Observation(step.value, StepOutcome.OK, found)


def _remark(step: str, found: str, action: str) -> Observation:
    return Observation(step, StepOutcome.REMARK, found, action)


def _of_live(target: str, acquired: Acquired) -> tuple[Observation, ...]:
    host, port = address_of(target)
    origin = acquired.origin
    return (
        _ok(Stage.GDB, f"installed; it and the relay are confined: {protections()}"),
        _ok(Stage.PORT, f"a GDB stub answers at {place_of(host, port)}"),
        _ok(Stage.QEMU, "the stub reads physical memory and has QEMU's monitor"),
        _ok(Stage.POWER, "64-bit POWER"),
        _direct_path(port, origin.read_path, origin.stopped_seconds or 0.0),
    )


def _direct_path(port: int, read_path: str, stopped: float) -> Observation:
    """Say whether memory is read from the QEMU process, and if not, what that would need."""
    what, stood_still = "direct path", f"the machine was stopped for {stopped * 1000:.0f} ms"
    if "QEMU process" in read_path:
        return Observation(what, StepOutcome.OK, f"read from {read_path}; {stood_still}")
    process = process_behind(port)
    scope = PTRACE_SCOPE.read_text().strip() if PTRACE_SCOPE.is_file() else "not there"
    return _remark(
        what,
        f"read through {read_path}; {stood_still}; process behind the port: "
        f"{process or 'not visible'}, kernel.yama.ptrace_scope: {scope}",
        "it is not required; for shorter stops, run the inspector on QEMU's own host, as root or "
        "as QEMU's user with kernel.yama.ptrace_scope=0",
    )


def _of_file(acquired: Acquired) -> tuple[Observation, ...]:
    kind = acquired.origin.read_path
    text = (
        "carries VMCOREINFO"
        if acquired.origin.vmcoreinfo
        else "carries no VMCOREINFO, which is not needed"
    )
    return (_ok(Stage.FORMAT, f"{kind}; {text}"), _ok(Stage.POWER, "64-bit POWER"))


def _of_kernel(acquired: Acquired) -> tuple[Observation, ...]:
    profile, origin = acquired.profile, acquired.origin
    order = "little-endian" if profile.byte_order == "<" else "big-endian"
    rejected = len(origin.rejected)
    others = f"; other kernels found and rejected: {rejected}" if rejected else ""
    return (
        _ok(
            Stage.KERNEL,
            f"Linux {profile.release}, {order}, {pte.size_name(profile.page_shift)} pages, "
            f"build ID {profile.build_id or 'none'}{others}",
        ),
        _ok(Stage.RADIX, "radix"),
        _ok(Stage.TYPES, f"by {origin.layout}"),
        _ok(Stage.KVM, "the modules kvm and kvm_hv are loaded"),
    )


def _of_state(snapshot: Snapshot) -> tuple[Observation, ...]:
    vms = snapshot.vms
    what = Stage.STATE.value
    gaps = [gap.text for gap in snapshot.gaps]
    if not vms and not gaps:
        return (
            _remark(
                what,
                "no VM runs",
                "start an L1 guest in the host: qemu-system-ppc64 -accel kvm "
                "-M pseries,cap-nested-hv=on",
            ),
        )
    seen = [_of_vm(vm) for vm in vms]
    if gaps:
        seen.append(
            _remark(what, f"not read: {'; '.join(gaps)}", "try again, or take a whole dump")
        )
    return tuple(seen)


def _of_vm(vm: Vm) -> Observation:
    what = f"VM lpid {vm.lpid}"
    if not vm.radix:
        return _remark(
            what,
            "hash MMU, so it has no nested guests; checked are its rmap words, rings and memslots",
            "boot the L1 guest's Linux without 'disable_radix'",
        )
    if vm.locked:
        return _remark(
            what, "mmu_lock is held: the state may be half way through a change", "try again"
        )
    if vm.gaps:
        shown = "; ".join(gap.text for gap in vm.gaps)
        return _remark(what, f"not read: {shown}", "'inspector check' says what it cannot judge")
    if not vm.nesting:
        return _remark(
            what,
            "nesting is not enabled for it",
            "load kvm_hv in the host with nested=1, and start the L1 guest with "
            "-M pseries,cap-nested-hv=on",
        )
    if not vm.nested and not len(vm.rmaps):
        return _remark(
            what, "nesting enabled, no nested guest yet", "start an L2 guest in the L1 guest"
        )
    return Observation(
        what,
        StepOutcome.OK,
        f"radix, nesting enabled, {len(vm.nested)} nested guests, {len(vm.rmaps)} rmap slots",
    )
