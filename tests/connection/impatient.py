"""The relay with less patience, run in its place by tests that wait for it to give up."""

from __future__ import annotations

from inspector.live import relay, terms

__all__ = ["main"]


def main() -> None:
    """Run the relay."""
    terms.SILENT = 0.2
    relay.main()
