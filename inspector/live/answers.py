"""The questions that may be asked of QEMU's stub, and the form of the answer to each.

This is the only list of both.  A question that has no form here is not sent,
and an answer that does not have the form of its question is not passed on.  No
form would let a stub ask GDB for files (``F...``, answers to ``vFile``), or
make GDB load any.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from inspector.live.framing import CONTENT_LIMIT

__all__ = [
    "BREAKPOINT",
    "CHANGE_OF_MODE",
    "FOR_GDB",
    "GO",
    "MONITOR",
    "NO_SUCH_FILE",
    "OK",
    "OWN_MEMORY",
    "PACKET_SIZES",
    "STOP",
    "UNKNOWN",
    "Form",
    "abilities",
    "form_of",
    "is_exit",
    "local_answer",
]

OK = b"OK"
ERROR = rb"E[0-9a-f]{2}"
THREAD = rb"(?:p-?[0-9a-f]{1,8}\.)?-?[0-9a-f]{1,8}"
ADDRESS = rb"[0-9a-f]{1,16}"
DONE = rb"OK|%b|" % ERROR

WORD_LIMIT = 64
"""Bytes of an answer that is a word or two."""
LIST_LIMIT = 1 << 14
REGISTER_LIMIT = 256
"""Digits of one register; the longest of a POWER processor has 512 bits."""

STOP = re.compile(
    rb"(?:T[0-9a-f]{2}(?:thread:%b;|[ra]?watch:%b;)*|S[0-9a-f]{2}"
    rb"|[WX][0-9a-f]{2}(?:;process:[0-9a-f]{1,8})?)" % (THREAD, ADDRESS)
)
"""The reply that says that the machine has stopped, or has ended."""


class Form(NamedTuple):
    """A kind of question, and the form of an answer to it.

    ``answer`` says whether a packet has that form, and ``limit`` how many
    bytes the answer to a question may have.
    """

    name: str
    question: re.Pattern[bytes]
    answer: Callable[[bytes], object]
    limit: Callable[[bytes], int]

    def admits(self, question: bytes, answer: bytes) -> bool:
        """Say whether an answer has the form."""
        return len(answer) <= self.limit(question) and bool(self.answer(answer))


def _form(
    name: str,
    question: bytes,
    answer: bytes | Callable[[bytes], object],
    limit: int | Callable[[bytes], int] = WORD_LIMIT,
) -> Form:
    return Form(
        name,
        re.compile(question),
        re.compile(answer, re.DOTALL).fullmatch if isinstance(answer, bytes) else answer,
        limit if callable(limit) else lambda _: limit,
    )


def _bytes_or_error(digits: bytes) -> Callable[[bytes], object]:
    """Return a function that says whether an answer is bytes written in digits, or an error."""
    error = re.compile(ERROR)

    def admits(answer: bytes) -> object:
        # for thousands of digits, this takes a tenth of the time that a pattern takes
        return error.fullmatch(answer) or not (len(answer) % 2 or answer.translate(None, digits))

    return admits


def _last_number(question: bytes) -> int:
    return int(question.rpartition(b",")[2], 16)


GO = _form(
    "go on",
    rb"[cs]|vCont(?:;(?:[cs]|[CS][0-9a-f]{2})(?::%b)?)+" % THREAD,
    STOP.fullmatch,
)
"""Answered when the machine has stopped.  QEMU does not refuse it, so an error is not an answer:
it would leave the machine stopped."""
MONITOR = _form(
    "monitor command", rb"qRcmd,[0-9a-f]+", rb"O(?:[0-9a-f]{2})+|%b" % DONE, CONTENT_LIMIT
)
"""Answered by any number of packets with output, and a last one with OK."""
BREAKPOINT = _form("breakpoint", rb"[Zz][1-4],%b,[0-9a-f]{1,8}" % ADDRESS, DONE)
"""Software breakpoints (Z0) are writes, and have no form."""
MEMORY = rb"m%b,[0-9a-f]{1,4}" % ADDRESS
OWN_MEMORY = _form(
    "memory",
    MEMORY,
    lambda answer: True,
    lambda question: max(len(b"E00"), 2 * _last_number(question)),
)
"""For the relay's own reads: decoding the answer shows whether it consists of digits."""
CHANGE_OF_MODE = _form("change of the mode", rb"Qqemu\.PhyMemMode:[01]", DONE)
REGISTER_DIGITS = b"0123456789abcdefx"
"""A register whose value is not known is written as that many ``x``."""

FOR_GDB = (
    _form(
        "memory",
        MEMORY,
        _bytes_or_error(b"0123456789abcdef"),
        OWN_MEMORY.limit,
    ),
    _form("why it is stopped", rb"\?", STOP.fullmatch),
    GO,
    _form("register", rb"p[0-9a-f]{1,4}", _bytes_or_error(REGISTER_DIGITS), REGISTER_LIMIT),
    _form("registers", rb"g", _bytes_or_error(REGISTER_DIGITS), LIST_LIMIT),
    _form("thread selection", rb"H[cg]%b" % THREAD, DONE),
    _form("whether a thread is there", rb"T%b" % THREAD, rb"OK|%b" % ERROR),
    _form("current thread", rb"qC", rb"(?:QC%b)?" % THREAD),
    _form("threads", rb"q[fs]ThreadInfo", rb"l|(?:m%b(?:,%b)*)?" % (THREAD, THREAD), LIST_LIMIT),
    BREAKPOINT,
    _form("ways to go on", rb"vCont\?", rb"(?:vCont(?:;[cCsSt])*)?"),
)
"""The questions of GDB that are passed on."""

FOR_US = (
    *FOR_GDB,
    MONITOR,
    _form("abilities", rb"qSupported:[\w+;]+", rb"[\x20-\x7e]*", LIST_LIMIT),
    _form(
        "machine description",
        rb"qXfer:features:read:[a-z0-9.-]{1,64}:[0-9a-f]{1,8},[0-9a-f]{1,4}",
        rb"[lm].*|%b|" % ERROR,
        lambda question: len(b"E00") + _last_number(question),
    ),
    _form("detach", rb"D(?:;[0-9a-f]{1,8})?", DONE),
    _form("physical mode", rb"qqemu\.PhyMemMode", rb"[01]?"),
    CHANGE_OF_MODE,
)
"""All questions that are sent: those of GDB, and those of the relay itself."""

WRITES = (b"M", b"X", b"G", b"P", b"Z")
REFUSED, UNKNOWN, NO_SUCH_FILE = b"E01", b"", b"E00"
OF_ITS_OWN = {b"qAttached": b"1"}
"""The questions of GDB that the relay answers itself, with their answers.  ``qAttached`` says that
the machine was there before GDB, so that GDB does not kill it."""

PACKET_SIZES = range(1 << 10, (1 << 14) + 1)
"""Bytes of a packet that a stub may announce; QEMU announces 4096."""
ADMITTED = (b"qXfer:features:read+", b"vContSupported+", b"multiprocess+")
"""Abilities of a stub of which GDB may know.  Any other would make GDB ask for more: which files
run, which libraries they use, what the processor has traced."""


def form_of(question: bytes, forms: tuple[Form, ...] = FOR_US) -> Form | None:
    """Return the form of a question, None for a question that must not be asked."""
    return next((form for form in forms if form.question.fullmatch(question)), None)


def local_answer(question: bytes) -> bytes:
    """Return the answer that GDB gets to a question that is not passed on."""
    if question[:1] in WRITES:
        return REFUSED
    return OF_ITS_OWN.get(question.partition(b":")[0], UNKNOWN)


def abilities(answer: bytes) -> bytes:
    """Return the part of a stub's answer to ``qSupported`` of which GDB may know."""
    given = answer.split(b";")
    kept = [ability for ability in ADMITTED if ability in given]
    for ability in given:
        name, _, value = ability.partition(b"=")
        if name == b"PacketSize" and re.fullmatch(rb"[0-9a-f]{1,8}", value):
            size = min(max(int(value, 16), PACKET_SIZES[0]), PACKET_SIZES[-1])
            kept.insert(0, b"PacketSize=%x" % size)
            break
    return b";".join(kept)


def is_exit(answer: bytes) -> bool:
    """Say whether a stop reply reports the end of the machine."""
    return answer[:1] in (b"W", b"X")
