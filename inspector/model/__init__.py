"""The reference model: what KVM-HV's nested reverse mapping does and what must hold.

``slot`` is one rmap slot and its operations, ``vm`` says what must hold for a
whole VM.  The model needs the standard library only, treats one item at a time,
and is written to be read next to the kernel's source.  The checks evaluate the
same rules over arrays, and ask the model about every item that they suspect.
"""
