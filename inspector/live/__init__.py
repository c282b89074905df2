"""A live machine: attached to by GDB, stopped and read over its stub or out of its QEMU."""
