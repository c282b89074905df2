"""What people ask of snapshots: how a page is mapped, and what has changed."""
