"""A VM on the list is alive: it has a process, users, and as many vCPUs as were made."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Evidence, Finding, Invariant, Rest, Severity, Unjudged
from inspector.checks.proof_words import member, shown_word
from inspector.checks.view import CheckedVm
from inspector.kvm.snapshot import Part, Vm
from inspector.regions import LINEAR_MAP, LINEAR_SIZE

ID = "vm-object"
USERS = 1 << 24
"""More than there can be open files of one VM."""
VCPUS = 1 << 16
"""More than KVM_MAX_VCPUS of any kernel, which is CONFIG_NR_CPUS."""
PIDS = 1 << 22
"""PID_MAX_LIMIT."""
WORD = 8


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield members of ``struct kvm`` that no VM on the list has."""
    vm = checked.vm
    mm = vm.member("mm")
    if mm is not None and (not 0 <= mm - LINEAR_MAP < LINEAR_SIZE or mm % WORD):
        yield Finding(
            ID,
            vm.lpid,
            f"the VM's process memory is said to be at {mm:#x}",
            "a struct mm_struct: it is held until the VM is gone from the list",
            _shown(vm, "mm"),
        )
    users = vm.member("users_count")
    if users is not None and not 0 < users < USERS:
        yield Finding(
            ID,
            vm.lpid,
            f"the VM has {users} users",
            f"1 for its file descriptor and one for each vCPU and device, below {USERS}",
            _shown(vm, "users_count"),
            # kvm_put_kvm counts down before kvm_destroy_vm takes the VM from the list.
            doubt="" if users else "the VM may be on its way out",
        )
    made, online = vm.member("created_vcpus"), vm.member("online_vcpus")
    # kvm_vm_ioctl_create_vcpu counts a vCPU as created first, and as online last.
    if made is not None and online is not None and online > made:
        yield Finding(
            ID,
            vm.lpid,
            f"{online} vCPUs are online, and {made} were made",
            "no more than were made",
            _shown(vm, "online_vcpus", "created_vcpus"),
        )
    if made is not None and made > VCPUS:
        yield Finding(
            ID,
            vm.lpid,
            f"{made} vCPUs were made",
            f"at most {VCPUS}",
            _shown(vm, "created_vcpus"),
        )
    pages = len(vm.host) + len(vm.hash_rmaps) + sum(len(nested.shadow) for nested in vm.nested)
    if online == 0 and (pages or vm.nested):
        yield Finding(
            ID,
            vm.lpid,
            f"no vCPU is online, and the VM has {len(vm.nested)} nested guests, and {pages} pages "
            "are mapped",
            "a vCPU: only what one does makes nested guests and maps pages, and none goes before "
            "the VM has left the list",
            _shown(vm, "online_vcpus"),
        )
    if vm.pid is not None and vm.pid > PIDS:
        yield Finding(
            ID,
            vm.lpid,
            f"the VM belongs to process {vm.pid}",
            f"a number up to {PIDS}; 0 where the kernel had no memory to tell of the VM",
            (member("struct kvm", vm, "pid"),),
        )


def _shown(vm: Vm, *names: str) -> tuple[Evidence, ...]:
    return tuple(shown_word(vm.members[name]) for name in names)


def rests(checked: CheckedVm) -> Iterator[Rest]:
    """Say which of the members are missing."""
    names = ("mm", "users_count", "created_vcpus", "online_vcpus")
    missing = [name for name in names if checked.vm.member(name) is None]
    if missing:
        yield Unjudged("whether the VM is alive", f"{', '.join(missing)} cannot be read here")


INVARIANT = Invariant(
    ID,
    "A VM on the list has a process, at least one user, and no more vCPUs online than were made. "
    "If it has nested guests or maps a page, it has a vCPU.",
    "What is freed is no VM: nothing that is found in it means anything.",
    "kvm_create_vm, kvm_uevent_notify_change, kvm_put_kvm, kvm_destroy_vm, "
    "kvm_vm_ioctl_create_vcpu",
    Severity.STRUCTURE,
    find,
    reads=frozenset({Part.VM}),
    rests=rests,
)
