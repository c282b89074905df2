"""GDB commands that show what KVM-HV on POWER believes about nested guests.

Source this file in a GDB that is attached to the GDB stub of a QEMU machine.
The commands are those of the package in this checkout,
``inspector/gdb_scripts/kvmhv.py``, which an installed package has too.
"""

from pathlib import Path

import gdb

COMMANDS = Path(__file__).resolve().parents[1] / "inspector" / "gdb_scripts" / "kvmhv.py"

gdb.execute(f"source {COMMANDS}")
