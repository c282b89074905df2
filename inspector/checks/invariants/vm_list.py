"""KVM's list of VMs leads to every VM, from both ends."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.checks.base import Invariant
from inspector.checks.findings import Evidence, Finding, Rest, Severity, Unjudged, Witness
from inspector.checks.proof_words import mismatch_findings, shown_word
from inspector.checks.view import CheckedHost, CheckedVm
from inspector.kvm.snapshot import Part

ID = "vm-list"
BASE = 1
"""The value of ``module.refcnt`` while a loaded module has no user (kernel/module/main.c)."""


def find(checked: CheckedVm) -> Iterator[Finding]:
    """Yield nothing: the list belongs to no VM."""
    yield from ()


def find_host(host: CheckedHost) -> Iterator[Finding]:
    """Yield links of the list that disagree, and a number of VMs that is not the module's."""
    vms = host.snapshot.vm_list
    yield from mismatch_findings(ID, None, vms.words.mismatches)
    users = vms.users
    if users is None or vms.words.mismatches or users.value - BASE == vms.listed:
        return
    count = users.value - BASE
    yield Finding(
        invariant=ID,
        vm_lpid=None,
        summary=f"the list leads to {vms.listed} VMs, and {count} references are held on the "
        "module kvm_hv",
        expected="one reference for each VM (module.refcnt counts one more)",
        evidence=(
            shown_word(users),
            *(Evidence("VM on the list", "kernel", vm.address) for vm in host.snapshot.vms),
        ),
        # kvm_create_vm takes its reference before the VM is on the list, and
        # kvm_destroy_vm drops it after the VM has left the list: there can be more, never fewer.
        doubt="a VM that is being made or destroyed has a reference and is not on the list, and an "
        "open file of KVM-HV in debugfs has one too; a VM that is on no list would look the same, "
        "and was not checked"
        if count > vms.listed
        else "",
    )


def rests_host(host: CheckedHost) -> Iterator[Rest]:
    """Yield how many links of the list were read in both directions."""
    vms = host.snapshot.vm_list
    yield Witness("links of the list of VMs", vms.words.words, vms.words.confirmed, "prev links")
    for why in vms.words.missing:
        yield Unjudged("whether the list of VMs is whole", why)
    if vms.users is None:
        yield Unjudged(
            "whether every VM is on the list", "there is no module.refcnt of kvm_hv to count by"
        )
    else:
        confirmed = vms.users.value - BASE == vms.listed
        yield Witness("references on kvm_hv", 1, int(confirmed), "the number of VMs on the list")


INVARIANT = Invariant(
    id=ID,
    statement="The list of VMs is a ring in both directions, and has as many VMs as hold a "
    "reference on the module kvm_hv.",
    why="A VM that is not on the list is not checked, and a wrong link hides all VMs after it.",
    source="kvm_create_vm, kvm_destroy_vm, kvm_arch_init_vm, kvm_arch_destroy_vm",
    severity=Severity.STRUCTURE,
    find=find,
    reads=frozenset({Part.VM}),
    find_host=find_host,
    rests_host=rests_host,
)
