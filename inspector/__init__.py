"""Shows and checks what KVM-HV on POWER believes about nested guests.

``open`` and ``attach`` are for notebooks and scripts (``manual/api.md``).
"""

from __future__ import annotations

TYPE_CHECKING = False
"""True for type checkers. Importing ``typing`` for it takes longer than the rest of this module."""
if TYPE_CHECKING:
    from inspector.api import Attached, Inspection, attach, open

__all__ = ["Attached", "Inspection", "__version__", "attach", "open"]

__version__ = "0.2.0.dev0"


def __getattr__(name: str) -> object:
    """Import ``inspector.api`` on first use: GDB's Python does not have the packages it needs."""
    if name not in __all__:
        raise AttributeError(f"module 'inspector' has no attribute {name!r}")
    from inspector import api

    return getattr(api, name)
