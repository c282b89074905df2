"""``python -m inspector``, and the command ``inspector``.

The exit code of a command is a statement about its target.  A failure of the
tool itself must therefore never end with one of those codes, whatever the
cause: a module that cannot be imported, memory that runs out, a stream that is
closed.  So everything runs inside the handler below, which needs only ``os``
and ``sys``: Python has loaded both before it reads this file.
"""

import os
import sys

__all__ = ["EXIT_FAILED", "TRACEBACK", "start"]

EXIT_FAILED = 4
"""The tool itself failed; the exit code says nothing about the target."""
EXIT_NOT_PRINTED = 3
EXIT_INTERRUPTED = 130
TRACEBACK = "INSPECTOR_TRACEBACK"
"""Environment variable that requests the traceback of a failure of the tool itself."""

ROOM = 112 << 20
"""Bytes of address space that NumPy's libraries need while they are loaded.

If they cannot get it, they end the process themselves, with exit code 1.
"""
ENOMEM = 12
SHOWN = 300
"""Characters of an error that the message repeats."""
NO_MEMORY = (
    b"inspector: the tool itself failed: there is not enough memory; this is no verdict on the "
    b"target; see that it gets more (ulimit -v)\n"
)


def start() -> None:
    """Load and run the command line, then exit with its code."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BaseException as error:  # whatever it is, it must not become a verdict
        code = EXIT_FAILED
        _tell(error)
    sys.exit(_flushed(code))


def _run() -> int:
    """Run the command line, and return the exit code that it ends with."""
    _complete_streams()
    import mmap
    import signal

    # Reserve the space once and release it: a shortage is an error here, not an exit in NumPy.
    mmap.mmap(-1, ROOM).close()
    # OpenBLAS interrupts the process if it cannot start a thread, and none is needed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Nothing is attached yet, so a Ctrl-C during the imports may simply end the process.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from inspector.cli import main

    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED
    return EXIT_FAILED


def _complete_streams() -> None:
    """Replace standard streams that are closed, and let no stream fail on text.

    Otherwise the next file that is opened would get the number of the closed
    stream, and the tool would print into it.  Text printed to a closed standard
    output is lost; a file that a command writes there (``-o -``) is an error,
    because the descriptor is open for reading only.
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
        # File names need not be valid text, and a terminal may know ASCII only.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _tell(error: BaseException) -> None:
    """Write one line that says that the tool failed, and the traceback if it was requested."""
    try:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == ENOMEM:
            os.write(2, NO_MEMORY)
        else:
            os.write(2, _sentence(error).encode("utf-8", "backslashreplace"))
        if os.environ.get(TRACEBACK):
            import traceback

            traceback.print_exception(error)
    except Exception:  # standard error fails too, so nothing can be reported
        return


def _sentence(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}..."
    remedy = f"set {TRACEBACK}=1 to see where, and report it"
    if isinstance(error, ImportError):
        remedy = "install the tool again, and check that PYTHONPATH does not hide its packages"
    return (
        f"inspector: the tool itself failed ({text}); this is no verdict on the target; {remedy}\n"
    )


def _flushed(code: int) -> int:
    """Flush the standard streams, and return the code to exit with.

    Python flushes the streams again when it ends, and would exit with a code
    of its own if that fails.  So a stream that fails is turned to /dev/null.
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
