"""One module per invariant; see ``inspector.checks.base``."""
