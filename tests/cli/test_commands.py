"""The commands: what they print, and the code they exit with."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner, Result

import inspector
from fixtures.synthetic import FakeVm, Image, MemslotRange, build
from inspector import __version__
from inspector.capture import Capture, write_capture
from inspector.checks.base import all_invariants
from inspector.cli import COMMANDS, MANUAL, cli, main
from inspector.kvm.collect import collect, vm_list
from inspector.kvm.snapshot import Part
from inspector.model.vm import VmState
from inspector.structures.space import KernelSpace
from tests.builders import leaf, table, words
from tests.fixtures import DIRECTORY, SMALL, description, opened
from tests.memories import pieces_of, without

LIST = ("--list", "--json")
READERS = ("check", "rmap", "vms")
TARGET = str(SMALL)
SYNTHETIC = FakeVm(
    VmState(
        12,
        table(leaf(0x1000, 0x40_0000), leaf(0x2000, 0x40_1000)),
        {1: words((1, 0x5000), (1, 0x6000)), 2: words((1, 0x7000))},
        {1: table(leaf(0x5000, 0x40_0000), leaf(0x7000, 0x40_1000))},
    ),
    (MemslotRange(0, 512, 0x7F00_0000_0000, id=4),),
    lpid=9,
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), standalone_mode=True)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, through main(), with its exit codes."""
    return subprocess.run(
        [sys.executable, "-m", "inspector", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def saved(path: Path, image: Image) -> str:
    write_capture(path, Capture(image.memory, image.profile, {"made": "by a test"}))
    return str(path)


@pytest.mark.slow
def test_a_vm_that_is_missing_does_not_hide_the_others(tmp_path: Path) -> None:
    acquired = opened(DIRECTORY / "powernv9-two-vms.core.zst")
    kept, lost = acquired.snapshot.vms
    kernel = KernelSpace(acquired.memory, acquired.profile)
    size = acquired.profile.struct("kvm").size
    memory = without(acquired.memory, kernel.physical(lost.address), size)
    path = tmp_path / "holed.core.zst"
    write_capture(path, Capture(memory, acquired.profile, {}))

    text = run("check", str(path))
    assert text.exit_code == 3
    assert f"note: not read: the VM at {lost.address:#x}: cannot read" in text.stdout
    assert "verdict: inconclusive" in text.stdout
    document = json.loads(run("check", str(path), "--json").stdout)
    assert document["verdict"] == "inconclusive"
    assert [vm["vm_lpid"] for vm in document["vms"]] == [kept.lpid]
    assert document["vms"][0]["verdict"] == "consistent"
    assert any(f"{lost.address:#x}" in note for note in document["notes"])
    for command in ("vms", "rmap"):
        shown = run(command, str(path))
        assert shown.exit_code == 0
        assert f"VM lpid {kept.lpid}: " in shown.stdout
        assert f"note: not read: the VM at {lost.address:#x}" in shown.stdout
        unread = json.loads(run(command, str(path), "--json").stdout)["unread"]
        assert any(f"{lost.address:#x}" in gap for gap in unread)
    assert f"{lost.address:#x}" in run("rmap", str(path), "--jsonl").stderr


def test_help_and_version() -> None:
    shown = run("--help").output
    for name, help_text in COMMANDS.items():
        assert name in shown
        assert help_text in " ".join(shown.split())
        assert run(name, "--help").exit_code == 0
    assert __version__ in run("--version").output
    assert "".join(shown.split()).endswith(f"{MANUAL / 'start.md'}")
    assert (MANUAL / "start.md").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS)
def test_a_good_target(command: str) -> None:
    result = run(command, TARGET)
    assert result.exit_code == 0, result.output
    assert "lpid 1" in result.stdout
    assert result.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("command", READERS)
def test_json_documents(command: str) -> None:
    result = run(command, TARGET, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["schema"] == f"inspector.{command}/1"
    target = document["target"]
    assert target["target"] == TARGET
    assert target["release"] == description(SMALL)["origin"]["release"]
    assert target["facts"]["scenario"] == "mixed"


def test_check_counts_what_rmap_lists() -> None:
    (vm,) = json.loads(run("check", TARGET, "--json").stdout)["vms"]
    slots = json.loads(run("rmap", TARGET, "--json").stdout)["slots"]
    lengths = [len(slot["words"]) for slot in slots]
    assert vm["slots"] == len(slots)
    assert vm["entries"] == sum(lengths) == vm["live"] + vm["stale"]
    assert vm["singles"] == lengths.count(1)
    assert vm["lists"] == len(lengths) - lengths.count(1)
    assert vm["longest_list"] == max(lengths)
    assert vm["stale"] == sum(vm["stale_by_reason"].values())
    assert vm["findings"] == []


def test_rmap_lines(tmp_path: Path) -> None:
    lines = run("rmap", "--jsonl", saved(tmp_path / "fake", build([SYNTHETIC]))).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "vm_lpid": 9,
            "memslot": 4,
            "base_gfn": "0x0",
            "gfn": "0x1",
            "words": ["0x10000000005000", "0x10000000006001"],
        },
        {
            "vm_lpid": 9,
            "memslot": 4,
            "base_gfn": "0x0",
            "gfn": "0x2",
            "words": ["0x10000000007001"],
        },
    ]


@pytest.mark.slow
def test_rmap_marks_entries_and_shortens_lists() -> None:
    short, whole = run("rmap", TARGET).stdout, run("rmap", TARGET, "--all").stdout
    assert "more (--all shows them)" in short
    assert "more (--all shows them)" not in whole
    entries = json.loads(run("check", TARGET, "--json").stdout)["vms"][0]
    lines = [line for line in whole.splitlines() if "  L2 " in line]
    assert len(lines) == entries["entries"]
    assert sum("stale: " in line for line in lines) == entries["stale"]


@pytest.mark.slow
def test_the_slots_of_some_pages_only() -> None:
    slots = json.loads(run("rmap", TARGET, "--json").stdout)["slots"]
    wanted = [slots[0]["gfn"], slots[5]["gfn"]]
    options = [f"--gfn={gfn}" for gfn in wanted]
    assert json.loads(run("rmap", TARGET, *options, "--json").stdout)["slots"] == [
        slots[0],
        slots[5],
    ]
    lines = run("rmap", TARGET, *options, "--jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [slots[0], slots[5]]
    text = run("rmap", TARGET, *options, "--gfn=0x12", "--gfn=0xffffff").stdout
    shown = [line.split()[1:] for line in text.splitlines() if line.startswith("  gfn ")]
    assert [line[0] for line in shown] == ["0x12", "0xffffff", *wanted]
    assert shown[0][1:] == ["empty"]
    assert shown[1][1:] == ["in", "no", "memslot"]


def test_a_slot_that_could_not_be_read_is_not_called_empty(tmp_path: Path) -> None:
    image = build([SYNTHETIC])
    kernel = KernelSpace(image.memory, image.profile)
    (vm,) = collect(kernel, vm_list(kernel)).vms
    array = kernel.physical(vm.memslots[0].rmap)
    holed = replace(image, memory=without(image.memory, array, 4096))
    text = run("rmap", saved(tmp_path / "holed", holed), "--gfn=0x1").stdout
    assert "gfn 0x1  not read" in text


@pytest.mark.slow
def test_vms_without_memslots() -> None:
    whole, short = run("vms", TARGET).stdout, run("vms", TARGET, "--nested").stdout
    assert "rmap array" in whole
    assert "rmap array" not in short
    assert set(short.splitlines()) < set(whole.splitlines())
    assert len(short.splitlines()) == len(whole.splitlines()) - 3


def test_vms_tells_of_every_guest() -> None:
    (vm,) = json.loads(run("vms", TARGET, "--json").stdout)["vms"]
    assert vm["mmu"] == "radix"
    assert [nested["lpid"] for nested in vm["nested"]] == [
        nested.lpid for nested in opened(SMALL).snapshot.vms[0].nested
    ]
    assert all(memslot["base_gfn"].startswith("0x") for memslot in vm["memslots"])


def test_a_host_without_vms_is_consistent(tmp_path: Path) -> None:
    target = saved(tmp_path / "none", build([]))
    result = run("check", target)
    assert result.exit_code == 0
    assert "KVM-HV is loaded and has no VMs." in result.stdout
    assert json.loads(run("vms", target, "--json").stdout)["vms"] == []


def test_the_list_of_invariants() -> None:
    result = run("check", "--list")
    assert result.exit_code == 0
    (document,) = {run("check", *options).stdout for options in (LIST, LIST[::-1])}
    listed = json.loads(document)
    assert listed["schema"] == "inspector.invariants/1"
    for invariant, told in zip(all_invariants(), listed["invariants"], strict=True):
        assert invariant.id in result.stdout
        assert invariant.statement in result.stdout
        assert (told["id"], told["statement"]) == (invariant.id, invariant.statement)
        assert listed["severities"][told["severity"]] == invariant.severity.meaning
        assert {Part[name.upper()] for name in told["reads"]} == invariant.reads


def test_the_manual_lists_the_invariants() -> None:
    page = Path(inspector.__file__).parent / "manual" / "invariants.md"
    assert run("check", "--list", "--markdown").stdout == page.read_text()


@pytest.mark.slow
def test_violations_exit_with_1(tmp_path: Path) -> None:
    lost = SYNTHETIC.state.slots | {2: words((1, 0x8000))}
    state = VmState(12, SYNTHETIC.state.host, lost, SYNTHETIC.state.shadows)
    image = build([FakeVm(state, SYNTHETIC.memslots)])
    done = process("check", saved(tmp_path / "lost", image))
    assert done.returncode == 1
    assert "shadow-leaf-covered" in done.stdout
    assert "an entry 0x10000000007000" in done.stdout


@pytest.mark.slow
def test_a_consistent_target_exits_with_0() -> None:
    done = process("check", TARGET)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("check",),
        ("check", "--nothing", TARGET),
        ("check", TARGET, TARGET),
        ("check", TARGET, "--read-path", "fast"),
        ("check", TARGET, "--kernel", "no-such-file"),
        ("rmap", TARGET, "--json", "--jsonl"),
        ("capture", TARGET),
        ("capture", TARGET, "-o", os.curdir),
        ("capture", TARGET, "-o", "f", "--note", "no-equals-sign"),
        ("check", "--markdown"),
        ("check", "--markdown", TARGET),
        ("decode",),
        ("decode", "zz"),
        ("decode", "0x10000000000000000"),
        ("decode", "--", "-1"),
        ("decode", "1.5"),
        ("decode", ""),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(*arguments) == (2, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "target",
    ["no-such-file", "gdb:", "gdb:localhost", "gdb::1234", "gdb:localhost:port", "gdb:a:-1", ""],
)
def test_a_target_that_cannot_be_opened_exits_with_3(target: str) -> None:
    assert run_main("check", target) == (3, "")


PACKED = SMALL.read_bytes()
CORE = zstandard.ZstdDecompressor().decompressobj().decompress(PACKED)
GARBAGE = {
    "empty": b"",
    "text": b"This is not a core.\n",
    "zeros": bytes(4096),
    "magic": b"\x7fELF",
    "elf header": CORE[:64],
    "program headers": CORE[:4096],
    "half a core": CORE[: len(CORE) // 2],
    "half a frame": PACKED[: len(PACKED) // 2],
    "no checksum": PACKED[:-4],
    "flipped frame": PACKED[:5000] + bytes([PACKED[5000] ^ 0xFF]) + PACKED[5001:],
    "a program": Path(sys.executable).read_bytes()[:50000],
    "json": b'{"schema": "inspector.check/1"}',
    "no notes": CORE.replace(b"INSPECTOR", b"INSPEKTOR"),
    "newer format": CORE.replace(b'{"format": 1, "profile"', b'{"format": 9, "profile"'),
    "note of nonsense": CORE.replace(b'{"format": 1, "profile"', b'["format": 1, "profile"'),
    "other page size": CORE.replace(b'"page_size": 4096', b'"page_size": 1234'),
    "no symbols": CORE.replace(b'"swapper_pg_dir"', b'"swapper_pg_dxr"'),
    "no structure": CORE.replace(b'"rmap_nested"', b'"rmap_nostod"'),
    "kdump": b"KDUMP   " + bytes(8192),
    "directory": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1 << 14, 1 << 17])
def test_of_a_core_that_is_cut_off_the_rest_is_shown(lost: int, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(CORE[:-lost])
    checked = run("check", str(path))
    assert checked.exit_code == 3
    assert "verdict: inconclusive" in checked.stdout
    assert "which is cut off" in checked.stdout
    listed = run("rmap", str(path), "--json")
    assert json.loads(listed.stdout)["slots"]


@pytest.mark.slow
@pytest.mark.parametrize("name", GARBAGE)
def test_a_file_that_is_no_target_exits_with_3(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / "target", GARBAGE[name]
    if content is None:
        path.mkdir()
    else:
        assert content != CORE, "the file was not changed"
        path.write_bytes(content)
    for command in READERS:
        result = run_main(command, str(path))
        assert result == (3, ""), name
    output = tmp_path / "out"
    assert run_main("capture", str(path), "-o", str(output)) == (3, "")
    assert sorted(tmp_path.iterdir()) == [path]


def run_main(*arguments: str) -> tuple[int, str]:
    """Run main() in this process: its exit code and what it printed on stdout."""
    out, err = io.StringIO(), io.StringIO()
    handler, hook = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["inspector", *arguments])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        with pytest.raises(SystemExit) as ended:
            main()
    signal.signal(signal.SIGTERM, handler)
    sys.unraisablehook = hook
    assert isinstance(ended.value.code, int)
    assert err.getvalue().startswith(("inspector: ", "Usage: ")), err.getvalue()
    return ended.value.code, out.getvalue()


@pytest.mark.slow
def test_a_capture_of_a_capture_is_the_same(tmp_path: Path) -> None:
    again, thrice = tmp_path / "again", tmp_path / "thrice"
    assert run("capture", TARGET, "-o", str(again)).exit_code == 0
    assert run("capture", str(again), "-o", str(thrice)).exit_code == 0
    first = run("rmap", "--jsonl", TARGET).stdout
    assert first
    for path in (again, thrice):
        assert run("rmap", "--jsonl", str(path)).stdout == first
    held = [pieces_of(opened(path).memory) for path in (SMALL, again, thrice)]
    assert held[0] == held[1] == held[2]


@pytest.mark.slow
def test_a_capture_is_the_owners_and_keeps_its_notes(tmp_path: Path) -> None:
    path = tmp_path / "out.core.zst"
    umask = os.umask(0)
    try:
        result = run(
            "capture", TARGET, "-o", str(path), "--note", "who=me", "--note", "x=1=2", "--json"
        )
    finally:
        os.umask(umask)
    assert result.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    document = json.loads(result.stdout)
    assert document["schema"] == "inspector.capture/1"
    assert document["bytes"] == path.stat().st_size
    facts = opened(path).origin.facts
    assert facts is not None
    assert (facts["who"], facts["x"]) == ("me", "1=2")
    assert facts["scenario"] == "mixed", "the facts of the first capture are kept"


@pytest.mark.slow
def test_a_capture_replaces_a_file_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"before")
    assert run("capture", str(tmp_path / "none"), "-o", str(path)).exit_code != 0
    assert path.read_bytes() == b"before"
    assert run("capture", TARGET, "-o", str(path)).exit_code == 0
    assert path.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_capture_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_main("capture", TARGET, "-o", str(tmp_path / "no" / "out")) == (3, "")

    def fail(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    result = run("capture", TARGET, "-o", str(tmp_path / "out"))
    assert result.exit_code != 0
    assert "No space left on device" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_control_characters_of_a_target_are_not_sent(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    image = build([SYNTHETIC])
    write_capture(path, Capture(image.memory, image.profile, {"odd": "\x1b[2Jhello\n"}))
    shown = run("check", str(path)).stdout
    assert "\x1b" not in shown
    assert "\\x1b[2Jhello\\n" in shown


@pytest.mark.parametrize(
    ("word", "form", "fields"),
    [
        ("0", "empty", {}),
        ("0x10000001000001", "single", {"lpid": 1, "gpa": "0x1000000", "problems": []}),
        ("0xfff0000000001000", "list", {"lpid": 4095, "gpa": "0x1000", "problems": []}),
        ("4503599627370497", "single", {"lpid": 1, "gpa": "0x0", "problems": []}),
        ("0b11", "single", {"lpid": 0, "gpa": "0x0", "problems": ["reserved bits 0x2 are set"]}),
    ],
)
def test_decode(word: str, form: str, fields: dict[str, object]) -> None:
    result = run("decode", "--json", word)
    document = json.loads(result.stdout)
    assert document["schema"] == "inspector.decode/1"
    assert document["words"] == [{"word": f"{int(word, 0):#018x}", "form": form, **fields}]
    text = run("decode", word).stdout
    assert text.startswith(f"{int(word, 0):#018x}  ")
    for problem in document["words"][0].get("problems", ()):
        assert problem in text


@pytest.mark.parametrize(
    ("word", "text", "fields"),
    [
        ("0", "empty slot", {"form": "empty"}),
        (
            "0x0100018100000430",
            "HPT index 0x430, referenced, changed",
            {"form": "hash", "index": "0x430", "referenced": True, "changed": True},
        ),
        ("0x0100000000000000", "no HPT entry", {"index": None, "locked": False, "problems": []}),
        (
            "0x0000080100000001",
            "HPT index 0x1, locked",
            {"locked": True, "problems": ["the type is 0x00, not that of a hash guest's word"]},
        ),
    ],
)
def test_decode_of_hash_guests(word: str, text: str, fields: dict[str, object]) -> None:
    (row,) = json.loads(run("decode", "--hash", "--json", word).stdout)["words"]
    assert {name: row[name] for name in fields} == fields
    shown = run("decode", "--hash", word).stdout.splitlines()
    assert shown[0] == f"{int(word, 0):#018x}  {text}"
    assert [line.strip() for line in shown[1:]] == row.get("problems", [])


def test_decode_takes_many_words() -> None:
    assert len(run("decode", "0", "1", "0x1001").stdout.splitlines()) == 3


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_violation() -> None:
    """The exit code 1 says that violations were found."""
    done = subprocess.Popen(
        [sys.executable, "-m", "inspector", "rmap", "--all", TARGET],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.stdout is not None
    assert done.stderr is not None
    done.stdout.close()
    message = done.stderr.read()
    done.stderr.close()
    assert done.wait(60) == 141
    assert message == b""
