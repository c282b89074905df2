"""``python -m inspector``, and the command ``inspector``."""

import signal

__all__ = ["start"]


def start() -> None:
    """Load the command line and run it."""
    # Nothing is attached yet: a Ctrl-C while modules are loaded just ends the process.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from inspector.cli import main

    main()


if __name__ == "__main__":
    start()
