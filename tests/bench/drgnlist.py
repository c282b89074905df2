"""A script that a person would write with drgn: list the words of a live machine's rmap slots.

    python -m tests.bench.drgnlist PID HVA SIZE VMCOREINFO DEBUG_FILE...

It lists the words only: it reads no tables and checks nothing.  QEMU's memory is
read from its process, where its RAM begins at HVA.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from drgn import Architecture, Platform, PlatformFlags, Program
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

LITTLE = PlatformFlags.IS_64_BIT | PlatformFlags.IS_LITTLE_ENDIAN


def main() -> None:
    """Print the number of slots that are not empty, and of their words."""
    pid, hva, size, vmcoreinfo, *files = sys.argv[1:]
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return os.pread(memory, count, int(hva, 0) + offset)

    program = Program(Platform(Architecture.PPC64, LITTLE))
    program.add_memory_segment(0, int(size, 0), read, True)
    program.set_linux_kernel_custom(Path(vmcoreinfo).read_bytes(), True)
    program.set_enabled_debug_info_finders([])
    program.load_debug_info(files)
    slots = words = 0
    for vm in list_for_each_entry("struct kvm", program["vm_list"].address_of_(), "vm_list"):
        active = vm.memslots[0]
        index = active.node_idx.value_()
        for slot in rbtree_inorder_for_each_entry(
            "struct kvm_memory_slot", active.gfn_tree.address_of_(), f"gfn_node[{index}]"
        ):
            count = slot.npages.value_()
            data = program.read(slot.arch.rmap.value_(), 8 * count)
            for (word,) in struct.iter_unpack("<Q", data):
                if not word:
                    continue
                slots += 1
                while not word & 1:
                    word, _ = struct.unpack("<QQ", program.read(word, 16))
                    words += 1
                words += 1
    print(slots, words)


if __name__ == "__main__":
    main()
