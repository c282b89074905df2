"""Which questions may be asked, and which answers to each are accepted."""

from __future__ import annotations

import pytest

from inspector.live.answers import FOR_GDB, FOR_US, abilities, form_of, local_answer

ANSWERED = {
    b"?": (b"T05thread:p01.01;", b"S05", b"W00", b"X09;process:1"),
    b"m1000,4": (b"00ff00ff", b"00", b"", b"E14"),
    b"g": (b"00xx" * 600, b"E01", b""),
    b"p40": (b"0123456789abcdef", b"x" * 16, b"E45"),
    b"Hgp0.0": (b"OK", b"E22", b""),
    b"T01": (b"OK", b"E22"),
    b"qC": (b"QCp01.01", b""),
    b"qfThreadInfo": (b"mp01.01,p01.02", b"l"),
    b"Z1,c000000000012345,4": (b"OK", b"", b"E22"),
    b"vCont?": (b"vCont;c;C;s;S", b""),
    b"vCont;c:p1.-1": (b"T05thread:p01.01;", b"T05watch:c0;thread:01;", b"W00"),
    b"qRcmd,00": (b"O41", b"OK", b"E01", b""),
    b"qSupported:multiprocess+": (b"PacketSize=1000;x+", b""),
    b"qXfer:features:read:target.xml:0,10": (b"m<a>", b"l", b"E00", b""),
    b"qqemu.PhyMemMode": (b"0", b"1", b""),
    b"Qqemu.PhyMemMode:1": (b"OK", b""),
    b"D;1": (b"OK", b"E22"),
}
NEVER = (
    b"Fopen,1000/9,601,1b6",
    b"F-1,9,C",
    b"F0",
    b"T05thread:p01.01;exec:2f62696e2f7368;",
    b"T05library:;",
    b"T05fork:p02.02;thread:01;",
    b"N",
    b"E.something went wrong",
    b"vCont;c;t;r\x1b]0;x\x07",
    b"\x1b[2J",
    b"OK\n",
    b"OKOK",
    b"0" * (1 << 16),
)


@pytest.mark.parametrize("question", ANSWERED, ids=lambda question: question.decode())
def test_answers_have_the_form_of_the_question(question: bytes) -> None:
    form = form_of(question)
    assert form is not None
    for answer in ANSWERED[question]:
        assert form.admits(question, answer), answer
    for answer in NEVER:
        # any text may be an ability; GDB is told of three
        assert question.startswith(b"qSupported") or not form.admits(question, answer), answer


@pytest.mark.parametrize("answer", [b"E22", b"", b"OK"])
def test_a_machine_that_is_not_let_go_on_ends_the_session(answer: bytes) -> None:
    question = b"vCont;c"
    form = form_of(question)
    assert form is not None
    assert not form.admits(question, answer)


@pytest.mark.parametrize("answer", [b"OK", b"T05thread:01;", b"qC", b"m01", b"l", b"0", b"x"])
@pytest.mark.parametrize("question", [b"m1000,4", b"p40", b"Z1,c0,4", b"qC"])
def test_answers_to_something_else(question: bytes, answer: bytes) -> None:
    form = form_of(question)
    assert form is not None
    assert form.admits(question, answer) == (question == b"Z1,c0,4" and answer == b"OK")


def test_no_more_memory_than_was_asked_for() -> None:
    form = form_of(b"m0,4")
    assert form is not None
    assert not form.admits(b"m0,4", b"00" * 5)


@pytest.mark.parametrize(
    "question",
    [
        *(b"M0,1:00", b"X0,1:\0", b"G00", b"P1=00", b"Z0,c0,4", b"z0,c0,4", b"k", b"R00", b"!"),
        *(b"vKill;1", b"vRun;", b"vFile:setfs:0", b"vFile:open:2f,0,0", b"vFlashErase:0,1"),
        *(b"vAttach;1", b"QNonStop:1", b"QStartNoAckMode", b"qSymbol::", b"qOffsets", b"c10"),
        *(b"qXfer:exec-file:read:1:0,ffb", b"qXfer:libraries:read::0,ffb", b"bc", b"bs"),
        *(b"qXfer:memory-map:read::0,ffb", b"qXfer:features:write:target.xml:0:00", b"x0,4"),
        *(b"qSearch:memory:0;1;00", b"QTinit", b"vCont;r0,4:p1.1", b"vCont;t", b"m0,4\nk", b""),
    ],
)
def test_questions_that_are_never_asked(question: bytes) -> None:
    assert form_of(question) is None
    assert local_answer(question) in (b"", b"E01")


def test_what_only_the_relay_asks() -> None:
    for question in (b"qRcmd,71", b"D", b"D;1", b"Qqemu.PhyMemMode:1", b"qSupported:x+"):
        assert form_of(question, FOR_US)
        assert form_of(question, FOR_GDB) is None


def test_gdb_is_told_of_three_abilities() -> None:
    given = (
        b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+;qXfer:exec-file:read+;"
        b"QStartNoAckMode+;qXfer:libraries:read+;vFile:setfs+;hwbreak+;FileIO+;ReverseStep+"
    )
    assert abilities(given) == given[: given.index(b";qXfer:exec")]
    assert abilities(b"") == b""
    assert abilities(b"PacketSize=ffffffff") == b"PacketSize=4000"
    assert abilities(b"PacketSize=1") == b"PacketSize=400"
    assert abilities(b"PacketSize=x;PacketSize") == b""
