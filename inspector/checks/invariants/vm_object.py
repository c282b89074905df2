"""A VM on the list is alive: it has a process, users, and plausible numbers of vCPUs."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Unjudged
from inspector.checks.proof_words import member, shown_word
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Vm
from inspector.regions import LINEAR_MAP, LINEAR_SIZE

ID = "vm-object"
USERS = 1 << 24
"""More users than one VM can have open files."""
VCPUS = 1 << 16
"""More than KVM_MAX_VCPUS of any kernel, which is CONFIG_NR_CPUS."""
PIDS = 1 << 22
"""PID_MAX_LIMIT."""
WORD = 8


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield values of members of ``struct kvm`` that no VM on the list can have."""
    vm = checked.vm
    mm = vm.member("mm")
    if mm is not None and (not 0 <= mm - LINEAR_MAP < LINEAR_SIZE or mm % WORD):
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"the VM's process memory is said to be at {mm:#x}",
            expected="a struct mm_struct: the VM holds it until it has left the list",
            evidence=_shown(vm, "mm"),
        )
    users = vm.member("users_count")
    if users is not None and not 0 < users < USERS:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"the VM has {users} users",
            expected=f"1 for its file descriptor and one for each vCPU and device, below {USERS}",
            evidence=_shown(vm, "users_count"),
            # kvm_put_kvm drops the count to 0 before kvm_destroy_vm removes the VM from the list.
            doubt="" if users else "the VM may be being destroyed",
        )
    made, online = vm.member("created_vcpus"), vm.member("online_vcpus")
    # kvm_vm_ioctl_create_vcpu increments created_vcpus first, and online_vcpus last.
    if made is not None and online is not None and online > made:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"{online} vCPUs are online, and {made} were made",
            expected="no more than were made",
            evidence=_shown(vm, "online_vcpus", "created_vcpus"),
        )
    if made is not None and made > VCPUS:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"{made} vCPUs were made",
            expected=f"at most {VCPUS}",
            evidence=_shown(vm, "created_vcpus"),
        )
    pages = len(vm.host) + len(vm.hash_rmaps) + sum(len(nested.shadow) for nested in vm.nested)
    if online == 0 and (pages or vm.nested):
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"no vCPU is online, and the VM has {len(vm.nested)} nested guests, and "
            f"{pages} pages are mapped",
            expected="a vCPU: only a vCPU makes nested guests and maps pages, and none is removed "
            "before the VM has left the list",
            evidence=_shown(vm, "online_vcpus"),
        )
    if vm.pid is not None and vm.pid > PIDS:
        yield Finding(
            invariant=ID,
            vm_lpid=vm.lpid,
            summary=f"the VM belongs to process {vm.pid}",
            expected=f"a number up to {PIDS}; 0 if the kernel had no memory to announce the VM",
            evidence=(member("struct kvm", vm, "pid"),),
        )


def _shown(vm: Vm, *names: str) -> tuple[Evidence, ...]:
    return tuple(shown_word(vm.members[name]) for name in names)


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Yield the members that could not be read."""
    names = ("mm", "users_count", "created_vcpus", "online_vcpus")
    missing = [name for name in names if checked.vm.member(name) is None]
    if missing:
        yield Unjudged("whether the VM is alive", f"{', '.join(missing)} cannot be read here")


INVARIANT = Invariant(
    id=ID,
    statement="A VM on the list has a process, at least one user, and no more vCPUs online than "
    "were made. If it has nested guests or maps a page, it has a vCPU.",
    why="Memory that is freed is no VM: nothing that is found in it means anything.",
    source="kvm_create_vm, kvm_uevent_notify_change, kvm_put_kvm, kvm_destroy_vm, "
    "kvm_vm_ioctl_create_vcpu",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.VM}),
    rests=rests,
)
