"""GDB commands that show what KVM-HV on POWER believes about nested guests.

Source this file in a GDB that is attached to the GDB stub of a QEMU machine.
This runs ``inspector/gdb_scripts/kvmhv.py`` of the same checkout; an installed
package has that file too.
"""

from pathlib import Path

import gdb

COMMANDS = Path(__file__).resolve().parents[1] / "inspector" / "gdb_scripts" / "kvmhv.py"

gdb.execute(f"source {COMMANDS}")
