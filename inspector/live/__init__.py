"""A live machine: GDB attaches to it, and it is read over QEMU's stub or out of QEMU's memory."""
