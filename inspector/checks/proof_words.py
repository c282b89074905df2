"""Single words of a proof."""

from __future__ import annotations

from inspector.checks.base import Evidence
from inspector.kvm.snapshot import Memslot, Nested, Vm

__all__ = ["member"]


def member(what: str, owner: Vm | Memslot | Nested, name: str, meaning: str = "") -> Evidence:
    """Show a member of a structure of the kernel."""
    value = int(getattr(owner, name))
    if name not in owner.places:
        return Evidence(f"{what}, its {name} {value:#x}", "kernel", owner.address, None, meaning)
    address, size = owner.places[name]
    return Evidence(f"{what}, {name}", "kernel", address, value, meaning, size)
