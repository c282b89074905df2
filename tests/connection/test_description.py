"""Descriptions of machines: QEMU's descriptions are accepted, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.live.description import NotDescribed, OtherArchitecture, described

HEAD = '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
ARCHITECTURE = "<architecture>powerpc:common64</architecture>"
FILES = {
    "target.xml": f'{HEAD}<target>{ARCHITECTURE}<xi:include href="core.xml"/>'
    '<xi:include href="power-altivec.xml"/></target>',
    "core.xml": '<?xml version="1.0"?>\n<!-- A licence,\n     in -two- lines  -->\n'
    '<!DOCTYPE feature SYSTEM "gdb-target.dtd">\n<feature name="org.gnu.gdb.power.core">\n'
    '  <reg name="r0" bitsize="64" type="uint64"/>\n'
    '  <reg name="pc" bitsize="64" type="code_ptr" regnum="64"/>\n'
    '  <reg name="cr" bitsize="32" group="general"/>\n</feature>\n',
    "power-altivec.xml": '<feature name="org.gnu.gdb.power.altivec">'
    '<vector id="v4f" type="ieee_single" count="4"/><union id="vec128">'
    '<field name="v4_float" type="v4f"/></union>'
    '<reg name="vr0" bitsize="128" type="vec128"/></feature>',
}


def of(text: str, **others: str) -> bytes:
    files = {"target.xml": text, **{f"{name}.xml": other for name, other in others.items()}}
    return described(lambda name: files[name].encode("latin-1")).text


def inside(text: str) -> str:
    return f"<target>{ARCHITECTURE}<feature name='x'>".replace("'", '"') + text


def test_one_document_is_made_of_all_files() -> None:
    text, sizes = described(lambda name: FILES[name].encode())
    assert sizes == {0: 8, 64: 8, 65: 4, 66: 16}
    assert text.startswith(HEAD.encode() + b"<target><architecture>powerpc:common64</arch")
    assert text.count(b"<reg ") == 4
    assert b"licence" not in text
    assert b"xi:include" not in text
    # the text that was written anew gives the same description
    assert described(lambda name: text) == (text, sizes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<target>",
        "<target></feature>",
        f"<target>{ARCHITECTURE}",
        f"<target>{ARCHITECTURE}{ARCHITECTURE}</target>",
        f"<target>{ARCHITECTURE}</target><target>",
        f"<target>{ARCHITECTURE}</target><target/>",
        "<target/>",
        f"{HEAD[:-1]} [<!ENTITY a 'b'>]><target/>",
        '<!DOCTYPE target [<!ENTITY x SYSTEM "file:///etc/passwd">]><target/>',
        inside("&lt;"),
        inside('<reg name="&amp;" bitsize="64"/></feature></target>'),
        inside('<reg name="a b" bitsize="64"/></feature></target>'),
        inside('<reg name="a" bitsize="64"></feature></target>'),
        inside('<reg name="a" name="b" bitsize="64"/></feature></target>'),
        inside('<reg name="a"/></feature></target>'),
        inside('<reg name="a" bitsize="0"/></feature></target>'),
        inside('<reg name="a" bitsize="65536"/></feature></target>'),
        inside('<reg name="a" bitsize="64" regnum="99999"/></feature></target>'),
        inside('<reg name="a" bitsize="64" regnum="1"/><reg name="b" bitsize="64" regnum="1"/>'),
        inside('<reg name="a" bitsize="64" onload="x"/></feature></target>'),
        inside('<reg name="' + "a" * 65 + '" bitsize="64"/></feature></target>'),
        inside('<vector id="v" type="int" count="99999999"/></feature></target>'),
        inside("<osabi>GNU/Linux</osabi></feature></target>"),
        inside("<![CDATA[x]]></feature></target>"),
        inside("<?php x?></feature></target>"),
        inside("\x1b[2J</feature></target>"),
        inside("text</feature></target>"),
        inside('<reg name="a" bitsize="64"/>' * 5000),
        f"<target>{ARCHITECTURE}" + "<feature" * 1000,
        f"<target>{ARCHITECTURE}<memory-map/></target>",
        f'<target>{ARCHITECTURE}<xi:include href="/etc/passwd"/></target>',
        f'<target>{ARCHITECTURE}<xi:include href="../core.xml"/></target>',
        f'<target>{ARCHITECTURE}<xi:include href="http://127.0.0.1/x.xml"/></target>',
        f'<target>{ARCHITECTURE}<xi:include href="target.xml"/></target>',
        "<!--" + "-" * 100_000,
        " " * (1 << 19),
    ],
)
def test_what_is_no_description_of_qemus(text: str) -> None:
    with pytest.raises(NotDescribed):
        of(text)


def test_files_include_no_files() -> None:
    include = '<xi:include href="core.xml"/>'
    with pytest.raises(NotDescribed, match="includes"):
        of(f"<target>{ARCHITECTURE}{include}{include}</target>", core=FILES["core.xml"])
    with pytest.raises(NotDescribed, match="<xi:include> in <feature>"):
        of(f"<target>{ARCHITECTURE}{include}</target>", core=f'<feature name="a">{include}')


@pytest.mark.parametrize("name", ["i386:x86-64", "aarch64", "powerpc:common"])
def test_other_architectures_are_told(name: str) -> None:
    text = f"<target><architecture>{name}</architecture><osabi>x</osabi></target>"
    with pytest.raises(OtherArchitecture, match=name):
        of(text)


ODD = {"&x;", "\x1b", "<![CDATA["}
TOKENS = sorted({*re.findall(r"<[^>]*>|[^<]+", "".join(FILES.values())), *ODD})


@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=3), max_size=30))
def test_whatever_is_written_is_plain(tokens: list[str]) -> None:
    files = {**FILES, "target.xml": "".join(tokens)}
    try:
        found = described(lambda name: files[name].encode("utf-8", "replace"))
    except NotDescribed:
        return
    plain = r'<\?xml version="1.0"\?><!DOCTYPE target SYSTEM "gdb-target.dtd">'
    plain += r'(</?[a-z]+( [a-z-]+="[\w.+-]*")*/?>|powerpc:common64)*'
    assert re.fullmatch(plain, found.text.decode("ascii"))
