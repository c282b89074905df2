"""``python -m inspector``, and the command ``inspector``.

The exit code of a command says something of its target.  A failure of the
tool itself must never end with one of those codes, whatever fails: a module
that cannot be imported, memory that runs out, a stream that is closed.  So
everything runs inside the handler below, which needs nothing but ``os`` and
``sys``: Python has loaded both before this file is read.
"""

import os
import sys

__all__ = ["EXIT_FAILED", "TRACEBACK", "start"]

EXIT_FAILED = 4
"""The tool itself failed, and nothing is said of the target."""
EXIT_NOT_PRINTED = 3
EXIT_INTERRUPTED = 130
TRACEBACK = "INSPECTOR_TRACEBACK"
"""Environment variable that asks for the traceback of a failure of the tool itself."""

ROOM = 112 << 20
"""Bytes of address space without which NumPy's libraries cannot be loaded.

They end the process themselves where they get no memory, and with code 1.
"""
ENOMEM = 12
SHOWN = 300
NO_MEMORY = (
    b"inspector: the tool itself failed: there is not enough memory; this is no verdict on the "
    b"target; see that it gets more (ulimit -v)\n"
)


def start() -> None:
    """Load the command line, run it, and exit with a code of its own."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BaseException as error:  # whatever it is, it must not become a verdict
        code = EXIT_FAILED
        _tell(error)
    sys.exit(_flushed(code))


def _run() -> int:
    """Run the command line; it ends by saying with which code."""
    _complete_streams()
    import mmap
    import signal

    mmap.mmap(-1, ROOM).close()
    # A thread that cannot be started would have OpenBLAS interrupt the process, and none is needed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Nothing is attached yet: a Ctrl-C while modules are loaded just ends the process.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from inspector.cli import main

    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return EXIT_FAILED


def _complete_streams() -> None:
    """Put something in the place of standard streams that are closed, and let none fail on text.

    Otherwise the next file that is opened would have the number of the one
    that is closed, and be printed into.  What is printed on a closed standard
    output goes nowhere; what a command writes there as a file
    (``-o -``) fails, for the descriptor cannot be written to.
    """
    for number, access in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, access)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it is open as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # names of files need not be text, and a terminal may know ASCII only
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _tell(error: BaseException) -> None:
    """Say in one line that the tool failed; the traceback only where it is asked for."""
    try:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == ENOMEM:
            os.write(2, NO_MEMORY)
        else:
            os.write(2, _sentence(error).encode("utf-8", "backslashreplace"))
        if os.environ.get(TRACEBACK):
            import traceback

            traceback.print_exception(error)
    except Exception:  # there is nobody left to tell
        return


def _sentence(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}..."
    remedy = f"set {TRACEBACK}=1 to see where, and report it"
    if isinstance(error, ImportError):
        remedy = "install the tool again, and see that PYTHONPATH does not hide its packages"
    return (
        f"inspector: the tool itself failed ({text}); this is no verdict on the target; {remedy}\n"
    )


def _flushed(code: int) -> int:
    """Return the code to end with, once everything that was printed is out.

    Python flushes the streams again when it ends, and would exit with a code
    of its own where that fails.
    """
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            if stream is sys.stdout and code in (0, 1):
                code = EXIT_NOT_PRINTED
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            except OSError:
                continue
    return code


if __name__ == "__main__":
    start()
