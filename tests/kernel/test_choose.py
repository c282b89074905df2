"""Which source describes the kernel: a layout, files, the cache, or its own memory."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fixtures.synthetic import LINEAR, Image, build
from inspector.errors import BadData, TargetNotSupported
from inspector.image import cache
from inspector.image.profile import Profile
from inspector.kernel import choose
from inspector.kernel.choose import describe_kernel
from inspector.kernel.discover import find_kernel
from inspector.kernel.host import confirmed, module_types
from inspector.kvm.collect import vm_list
from inspector.memory.segments import SegmentedMemory
from inspector.options import Options
from inspector.structures.space import KernelSpace
from tests.elfwriter import build_id_note, elf_file, symbol_table
from tests.kallsymswriter import Form
from tests.memories import of_segments, patch, pieces_of
from tests.selfdescribed import BUILD_ID, furnish

IMAGE = build([], furnish=furnish(Form()))
MEMORY = IMAGE.memory
NONE = Options()
HOME = "inspector/layouts"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no kernel files on this host."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("inspector.image.files._kernel_candidates", lambda: iter(()))
    return tmp_path / HOME


def no_search(*arguments: Any) -> Any:
    raise AssertionError("memory was searched")


def without_search(monkeypatch: pytest.MonkeyPatch, memory: SegmentedMemory = MEMORY) -> str:
    with monkeypatch.context() as patched:
        patched.setattr(choose, "find_kernel", no_search)
        return describe_kernel(memory, NONE).source


def test_the_second_time_nothing_is_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = describe_kernel(MEMORY, NONE)
    assert first.source == "the target's memory"
    (file,) = folder.iterdir()
    assert file.name == f"{BUILD_ID.hex()}.json"
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert Profile.from_json(file.read_bytes()) == first.profile
    assert without_search(monkeypatch) == "the cache"
    assert describe_kernel(MEMORY, NONE).profile == first.profile


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 100, b"{}" * (1 << 20)])
def test_a_damaged_file_is_ignored_and_written_anew(
    folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe_kernel(MEMORY, NONE)
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    assert describe_kernel(MEMORY, NONE).source == "the target's memory"
    assert file.read_bytes() == good
    assert without_search(monkeypatch) == "the cache"


def test_a_profile_under_the_wrong_build_id_is_ignored(folder: Path) -> None:
    describe_kernel(MEMORY, NONE)
    (file,) = folder.iterdir()
    file.rename(folder / f"{'0' * 40}.json")
    assert describe_kernel(MEMORY, NONE).source == "the target's memory"


def test_another_build_is_searched_for(folder: Path) -> None:
    describe_kernel(MEMORY, NONE)
    other = build([], furnish=furnish(Form(), build_id=bytes(range(20)))).memory
    known = describe_kernel(other, NONE)
    assert (known.source, known.profile.build_id) == ("the target's memory", bytes(range(20)).hex())
    assert len(list(folder.iterdir())) == 2
    assert describe_kernel(MEMORY, NONE).source == "the cache"


def test_a_rebuilt_module_is_not_described_by_the_cache(folder: Path) -> None:
    known = describe_kernel(MEMORY, NONE)
    raw = known.profile.to_json()
    raw["module_btf"]["kvm_hv"] = "0" * 64
    (file,) = folder.iterdir()
    file.write_text(json.dumps(raw))
    assert describe_kernel(MEMORY, NONE).source == "the target's memory"
    with pytest.raises(TargetNotSupported, match="another build of the module kvm_hv"):
        confirmed(MEMORY, Profile.from_json(json.dumps(raw)), nullcontext)


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("in the way")
    assert describe_kernel(MEMORY, NONE).source == "the target's memory"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setattr(Path, "home", lambda: folder.parent.parent)
    assert cache.directory() == folder.parent.parent / ".cache" / HOME


@pytest.mark.parametrize("build_id", ["", "../../etc", "ABCDEF0123", "0" * 200])
def test_what_is_no_build_id_names_no_file(folder: Path, build_id: str) -> None:
    profile = describe_kernel(MEMORY, NONE).profile
    (file,) = folder.iterdir()
    file.unlink()
    cache.keep(Profile.from_json(json.dumps(profile.to_json() | {"build_id": build_id})))
    assert not list(folder.parent.parent.rglob("*.json"))


def layout(path: Path, **changes: Any) -> Options:
    raw = describe_kernel(MEMORY, NONE).profile.to_json() | changes
    path.write_text(json.dumps(raw))
    return Options(layout=path)


def test_a_layout(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = layout(tmp_path / "l.json")
    monkeypatch.setattr(choose, "find_kernel", no_search)
    known = describe_kernel(MEMORY, sources)
    assert known.source == f"the layout {tmp_path / 'l.json'}"
    assert known.profile.vmcoreinfo == IMAGE.profile.vmcoreinfo


def test_a_layout_of_another_kernel(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    for changes, why in (
        ({"build_id": "12" * 20}, "build ID at physical .* is a0a1"),
        ({"release": "6.1.0"}, "its banner is not at physical"),
    ):
        with pytest.raises(TargetNotSupported, match=f"does not fit the target: .*{why}"):
            describe_kernel(MEMORY, layout(path, **changes))
    symbols = describe_kernel(MEMORY, NONE).profile.to_json()["symbols"]
    for name in ("swapper_pg_dir", "modules"):
        moved = symbols | {name: f"{int(symbols[name], 16) + 0x100000:#x}"}
        with pytest.raises(TargetNotSupported, match="does not fit the target"):
            describe_kernel(MEMORY, layout(path, symbols=moved))
    path.write_text("{}")
    with pytest.raises(BadData, match="layout profile is damaged"):
        describe_kernel(MEMORY, Options(layout=path))
    with pytest.raises(BadData, match="cannot read"):
        describe_kernel(MEMORY, Options(layout=tmp_path / "absent"))


def test_what_to_get_where_memory_does_not_say_enough(folder: Path) -> None:
    memory = build([], furnish=furnish(Form(), types=False)).memory
    with pytest.raises(TargetNotSupported, match=r"kvm-hv\.ko of the package linux-image-6\.12"):
        describe_kernel(memory, NONE)
    assert not folder.exists()


def test_damage_since_it_was_kept(folder: Path) -> None:
    describe_kernel(MEMORY, NONE)
    banner = IMAGE.profile.symbols["linux_banner"] & ((1 << 60) - 1)
    with pytest.raises(TargetNotSupported, match="not found in the first 64 MiB"):
        describe_kernel(patch(MEMORY, banner, bytes(8)), NONE)


RELOCATED = 192 << 20


def files(image: Image, base: int, folder: Path, build_id: bytes = BUILD_ID) -> Options:
    """Write the files of a kernel that begins at physical 0 according to its symbols."""
    symbols = image.profile.symbols
    known = find_kernel(image.memory).profile
    assert known is not None
    kernel = KernelSpace(image.memory, known)
    strings, rows = b"\0", []
    for name, value in {**symbols, "_text": LINEAR | base}.items():
        rows.append((len(strings), 1, value - base))
        strings += name.encode() + b"\0"
    begin, end = symbols["__start_BTF"], symbols["__stop_BTF"]
    sections = {
        ".symtab": symbol_table(rows),
        ".strtab": strings,
        ".notes": build_id_note(build_id),
        ".BTF": kernel.read(begin, end - begin),
    }
    banner = symbols["linux_banner"]
    load = (banner - base, kernel.read(banner, 64).ljust(512, b"\0"))
    folder.mkdir()
    (folder / "vmlinux").write_bytes(elf_file(sections, load=load))
    for name, types in module_types(kernel).items():
        of_module = {".modinfo": b"vermagic=6.12.0-fake SMP\0", ".BTF": types}
        (folder / f"{name.replace('_', '-')}.ko").write_bytes(elf_file(of_module))
    return Options(kernel=folder / "vmlinux", modules=folder)


@pytest.mark.slow
@pytest.mark.parametrize("base", [0, RELOCATED])
def test_files_of_a_kernel_wherever_it_was_loaded(
    folder: Path, tmp_path: Path, base: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = build([], base=base, furnish=furnish(Form(), base=base))
    sources = files(image, base, tmp_path / "files")
    known = describe_kernel(image.memory, sources)
    assert known.source == "files"
    expected = find_kernel(image.memory).profile
    assert expected is not None
    assert known.profile.symbols == {
        name: value for name, value in expected.symbols.items() if name in known.profile.symbols
    }
    assert vm_list(KernelSpace(image.memory, known.profile)) == image.vm_list

    monkeypatch.setattr("inspector.image.files._kernel_candidates", lambda: iter([sources.kernel]))
    looked_up = describe_kernel(image.memory, Options(modules=sources.modules))
    assert looked_up.profile == known.profile


@pytest.mark.slow
def test_files_of_another_kernel_than_the_one_that_was_moved(folder: Path, tmp_path: Path) -> None:
    image = build([], base=RELOCATED, furnish=furnish(Form(), base=RELOCATED))
    other = files(image, RELOCATED, tmp_path / "other", build_id=bytes(range(20)))
    with pytest.raises(TargetNotSupported, match="is not the kernel that runs in the target"):
        describe_kernel(image.memory, other)


@pytest.mark.slow
def test_a_guest_of_the_same_build_is_not_taken_for_a_kernel_that_was_moved(
    folder: Path, tmp_path: Path
) -> None:
    sources = files(IMAGE, 0, tmp_path / "files")
    host = build([])
    guest = [(start + RELOCATED, data) for start, data in pieces_of(MEMORY)]
    with pytest.raises(TargetNotSupported, match="is not the kernel that runs in the target"):
        describe_kernel(of_segments([*pieces_of(host.memory), *guest]), sources)
