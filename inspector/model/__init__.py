"""The reference model: what KVM-HV's nested reverse mapping does and what must hold.

``slot`` is one rmap slot and its operations, ``vm`` what must hold of a whole
VM.  Standard library only, one item at a time, written to be read next to
the kernel; the checks evaluate the same rules over arrays and ask the model
about every item they suspect.
"""
