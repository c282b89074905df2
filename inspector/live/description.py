"""The description of a machine's registers, as QEMU's stub gives it: checked, and written anew.

GDB reads it with an XML parser that accepts a great deal more.  So only the
elements that are understood here are written for GDB: one document without
entities, comments or other files, of features with registers and their types.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["ROOT", "TEXT_LIMIT", "Description", "NotDescribed", "OtherArchitecture", "described"]

ROOT = "target.xml"
PROLOG = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
POWER = "powerpc:common64"
TEXT_LIMIT = 1 << 18
"""Bytes of one file."""
FILE_LIMIT = 16
ELEMENT_LIMIT = 1 << 12
BIT_LIMIT = 1024
NUMBER_LIMIT = 1 << 12

TOKEN = re.compile(
    r"<(?P<end>/)?(?P<name>[a-z:]+)(?P<attributes>(?:\s+[\w:-]+=\"[^\"<>&]*\")*)\s*(?P<empty>/)?>"
    r"|(?P<text>[\w:.-]+)|\s+"
    r"|<!--(?:[^-]|-(?!->))*-->|<\?xml [^<>?]*\?>|<!DOCTYPE [a-z]+ SYSTEM \"[\w.-]+\">"
)
ATTRIBUTE = re.compile(r"([\w:-]+)=\"([^\"]*)\"")
FILE = re.compile(r"[a-z0-9-]{1,48}\.xml")

WITHIN = {
    "target": "",
    "architecture": "target",
    "xi:include": "target",
    "feature": "target",
    "reg": "feature",
    "vector": "feature",
    "union": "feature",
    "field": "union",
}
"""The element in which each element may occur; a file that is included is a feature."""
WORD, NUMBER = r"[\w.+-]{1,64}", "[0-9]{1,5}"


def _attributes(**forms: str) -> re.Pattern[str]:
    """Return the pattern of the attributes of an element that is written anew."""
    known = "|".join(f'{name.replace("_", "-")}="{form}"' for name, form in forms.items())
    return re.compile(rf"(?:\s+(?:{known}))*")


KEPT = {
    "feature": _attributes(name=WORD),
    "reg": _attributes(
        name=WORD, bitsize=NUMBER, regnum=NUMBER, type=WORD, group=WORD, save_restore=WORD
    ),
    "vector": _attributes(id=WORD, type=WORD, count=NUMBER),
    "union": _attributes(id=WORD),
    "field": _attributes(name=WORD, type=WORD),
}
NEEDED = {
    "feature": {"name"},
    "reg": {"name", "bitsize"},
    "vector": {"id", "type", "count"},
    "union": {"id"},
    "field": {"name", "type"},
}


class NotDescribed(ValueError):  # noqa: N818
    """A description that QEMU would not give; the message says why."""


class OtherArchitecture(NotDescribed):
    """The description of a machine that is not 64-bit POWER; the message is its architecture."""


class Description(NamedTuple):
    """The text that GDB is given, and the size in bytes of each register by its number."""

    text: bytes
    sizes: dict[int, int]


def described(fetch: Callable[[str], bytes]) -> Description:
    """Return the description of a machine.

    Args:
        fetch: returns a file of it, by its name.

    Raises:
        NotDescribed: QEMU would not give it.
        OtherArchitecture: it describes a machine that is not 64-bit POWER.
    """
    return _Reader(fetch).result()


class _Reader:
    """Goes through the files, element by element."""

    def __init__(self, fetch: Callable[[str], bytes]) -> None:
        self._fetch = fetch
        self._written: list[str] = []
        self._sizes: dict[int, int] = {}
        self._number = self._elements = 0
        self._files = {ROOT}
        self._architecture = ""

    def result(self) -> Description:
        self._file(ROOT, "")
        if not self._elements:
            raise NotDescribed(f"{ROOT} is empty")
        if not self._architecture:
            raise OtherArchitecture("not given")
        architecture = f"<architecture>{self._architecture}</architecture>"
        text = f"{PROLOG}<target>{architecture}{''.join(self._written)}</target>"
        return Description(text.encode(), self._sizes)

    def _file(self, name: str, outer: str) -> None:
        """Read a file whose outermost elements belong in the element ``outer``."""
        data = self._fetch(name)
        if len(data) > TEXT_LIMIT:
            raise NotDescribed(f"{name} has more than {TEXT_LIMIT} bytes")
        try:
            text = data.decode("ascii")
        except UnicodeDecodeError as error:
            raise NotDescribed(f"{name} is not ASCII") from error
        opened = [outer]
        at = 0
        while at < len(text):
            token = TOKEN.match(text, at)
            if token is None:
                raise NotDescribed(f"{name} has {text[at : at + 40]!r}")
            at = token.end()
            if token.lastgroup == "text":
                self._text(name, opened[-1], token["text"])
            elif token["name"]:
                self._element(name, opened, token)
        if len(opened) != 1:
            raise NotDescribed(f"{name} ends inside <{opened[-1]}>")

    def _text(self, name: str, inside: str, text: str) -> None:
        if inside != "architecture" or self._architecture:
            raise NotDescribed(f"{name} has the text {text[:40]!r} in <{inside}>")
        if text != POWER:
            raise OtherArchitecture(text)
        self._architecture = text

    def _element(self, name: str, opened: list[str], token: re.Match[str]) -> None:
        end, element, attributes, empty, _ = token.groups()
        if end:
            if element != opened.pop() or not opened or attributes:
                raise NotDescribed(f"{name} has </{element[:40]}> where it does not belong")
            if element in ("feature", "union"):
                self._written.append(f"</{element}>")
            return
        self._elements += 1
        if WITHIN.get(element, element) != opened[-1] or self._elements > ELEMENT_LIMIT:
            raise NotDescribed(f"{name} has <{element[:40]}> in <{opened[-1]}>")
        if element == "target" and self._elements > 1:
            raise NotDescribed(f"{name} has a second <target>")
        pairs = ATTRIBUTE.findall(attributes)
        given = dict(pairs)
        if len(given) != len(pairs):
            raise NotDescribed(f"{name} has <{element}> with an attribute twice")
        if element == "xi:include":
            self._include(name, given)
        elif element in KEPT:
            self._write(name, element, attributes, given, bool(empty))
        if not empty:
            opened.append(element)

    def _include(self, name: str, given: dict[str, str]) -> None:
        file = given.get("href", "")
        if not FILE.fullmatch(file) or file in self._files or len(self._files) > FILE_LIMIT:
            raise NotDescribed(f"{name} includes {file[:40]!r}")
        if not self._architecture:
            raise OtherArchitecture("not given")
        self._files.add(file)
        self._file(file, "target")

    def _write(
        self, name: str, element: str, attributes: str, given: dict[str, str], empty: bool
    ) -> None:
        """Write an element anew."""
        if not KEPT[element].fullmatch(attributes) or not given.keys() >= NEEDED[element]:
            raise NotDescribed(f"{name} has <{element}{attributes[:80]}>")
        if element in ("reg", "vector", "field") and not empty:
            raise NotDescribed(f"{name} has <{element}> with something in it")
        if element == "reg":
            self._register(name, given)
        # no attribute has a space in it, so this changes only the spaces between them
        written = " ".join((element, *attributes.split()))
        self._written.append(f"<{written}{'/' if empty else ''}>")

    def _register(self, name: str, given: dict[str, str]) -> None:
        """Note the size of a register; one without a number has the number after the last."""
        bits, number = int(given["bitsize"]), int(given.get("regnum", self._number))
        if not 0 < bits <= BIT_LIMIT or number >= NUMBER_LIMIT or number in self._sizes:
            raise NotDescribed(f"{name} has register {number} of {bits} bits")
        self._sizes[number] = -(-bits // 8)
        self._number = number + 1
