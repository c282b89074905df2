"""Questions about snapshots: how a page is mapped, and what has changed."""
