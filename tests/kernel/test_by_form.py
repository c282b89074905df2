"""A kernel that does not name its data, found by its form with the debug file of kvm-hv alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.synthetic import BUILD_IDS, LAYOUTS, MODULE_SIZE, THIS_MODULE, Image, build
from inspector.errors import InspectorError, TargetNotSupported
from inspector.image.cache import cached_profiles, keep
from inspector.kernel import choose
from inspector.kernel.choose import describe_kernel
from inspector.kernel.discover import FoundKernel, find_kernel
from inspector.kvm.collect import collect
from inspector.memory.segments import SegmentedMemory
from inspector.options import Options
from inspector.structures.space import KernelSpace
from tests.fakedwarf import FakeDwarf
from tests.kallsymswriter import Form
from tests.memories import of_segments, patch, without
from tests.selfdescribed import furnish

DATA = (
    "__start_BTF",
    "__start_notes",
    "__stop_BTF",
    "btf_modules",
    "cur_cpu_spec",
    "linux_banner",
    "modules",
    "slab_caches",
    "swapper_pg_dir",
    "vmcoreinfo_data",
    "vmcoreinfo_size",
)
MIB = 1 << 20
NAME = LAYOUTS["module"][1]["name"][0]
LIST = LAYOUTS["module"][1]["list"][0]


@pytest.fixture(autouse=True)
def _types_from_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("inspector.kernel.discover.Dwarf", FakeDwarf)
    monkeypatch.setattr("inspector.image.files._kernel_candidates", lambda: iter(()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def host(page_size: int = 4096, order: str = "<", *, kvm_loaded: bool = True) -> Image:
    own = furnish(Form(byte_order=order), types=False, module_types=False, leave_out=DATA)
    return build([], page_size, order, kvm_loaded=kvm_loaded, furnish=own)


HOST = host()


def found_in(memory: SegmentedMemory, debug_file: Path = FakeDwarf.of_the_module) -> FoundKernel:
    return find_kernel(memory, debug_file=debug_file)


def module_at(image: Image, name: str) -> int:
    """Return the address of a module's ``struct module``."""
    kernel = KernelSpace(image.memory, image.profile)
    link = kernel.pointer(image.profile.symbols["modules"])
    while kernel.read(link - LIST + NAME, len(name) + 1) != name.encode() + b"\0":
        link = kernel.pointer(link)
    return link - LIST


def changed(image: Image, where: int, data: bytes) -> SegmentedMemory:
    """Return an image's memory with other bytes at a kernel address."""
    physical = KernelSpace(image.memory, image.profile).physical(where)
    return patch(image.memory, physical, data)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("page_size", [1 << 12, 1 << 16])
def test_what_is_not_named_is_found(page_size: int, order: str) -> None:
    image = host(page_size, order)
    found = found_in(image.memory)
    profile = found.profile
    assert profile is not None
    wanted = image.profile.symbols
    for name in ("linux_banner", "modules", "swapper_pg_dir", "vmcoreinfo_data", "vmcoreinfo_size"):
        assert profile.symbols[name] == wanted[name]
    assert profile.page_size == page_size
    assert profile.build_id == BUILD_IDS["vmlinux"].hex()
    assert profile.module_build_ids == {"kvm_hv": BUILD_IDS["kvm_hv"].hex()}
    assert collect(KernelSpace(image.memory, profile), None).vms == ()


@pytest.mark.slow
def test_without_a_debug_file_it_says_what_to_get() -> None:
    found = find_kernel(HOST.memory)
    assert (found.release, found.profile) == ("6.12.0-fake", None)
    with pytest.raises(
        TargetNotSupported,
        match=r"CONFIG_KALLSYMS_ALL.*give --debug-file .*kvm-hv\.ko of the package "
        r"linux-image-6\.12\.0-fake-dbg",
    ):
        describe_kernel(HOST.memory, Options())


@pytest.mark.slow
def test_the_second_time_nothing_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        build_id = BUILD_IDS["kvm_hv"].hex()

    monkeypatch.setattr(choose, "ElfFile", lambda path: File)
    sources = Options(debug_file=FakeDwarf.of_the_module)
    first = describe_kernel(HOST.memory, sources)
    assert first.source == f"the target's memory and {FakeDwarf.of_the_module}"
    for again in (sources, Options()):
        known = describe_kernel(HOST.memory, again)
        assert (known.source, known.profile) == ("the cache", first.profile)
    (kept,) = cached_profiles()
    assert "vm_list" not in kept.symbols
    File.build_id = "00" * 20
    with pytest.raises(TargetNotSupported, match="kvm_hv that is loaded has the build ID"):
        describe_kernel(HOST.memory, Options(debug_file=Path("00" * 20)))


@pytest.mark.slow
def test_another_build_of_the_module() -> None:
    with pytest.raises(TargetNotSupported, match=r"kvm_hv that is loaded has the build ID 5051"):
        found_in(HOST.memory, Path("12" * 20))
    with pytest.raises(TargetNotSupported, match="it has no build ID"):
        found_in(HOST.memory, Path())
    found = found_in(HOST.memory)
    assert found.profile is not None
    # The profile is kept; then the module is rebuilt.
    keep(found.profile)
    note = module_at(HOST, "kvm_hv") - THIS_MODULE + 256 + 16
    with pytest.raises(TargetNotSupported, match="CONFIG_KALLSYMS_ALL"):
        describe_kernel(changed(HOST, note, bytes(20)), Options())


def test_kvm_is_not_loaded() -> None:
    with pytest.raises(TargetNotSupported, match=r"KVM-HV is not loaded .* vmalloc space"):
        found_in(host(kvm_loaded=False).memory)


def test_missing_memory_is_not_a_missing_module() -> None:
    image = host(kvm_loaded=False)
    core = module_at(image, "nx_crypto") - THIS_MODULE
    physical = KernelSpace(image.memory, image.profile).physical(core)
    with pytest.raises(TargetNotSupported, match="kernel's modules may lie there"):
        found_in(without(image.memory, physical, 4096))


def test_the_hash_mmu_is_seen_in_the_page_table() -> None:
    swapper = HOST.profile.symbols["swapper_pg_dir"] & ((1 << 60) - 1)
    with pytest.raises(TargetNotSupported, match="hash MMU"):
        found_in(patch(HOST.memory, swapper, bytes(8)))


@pytest.mark.slow
def test_a_guest_of_the_same_build() -> None:
    """A guest's ring, pointers and VMCOREINFO are copies of the host's at other addresses."""
    whole = HOST.memory.read(0, int(HOST.memory.sizes[0]) // 4096 * 4096)
    found = found_in(of_segments([(0, whole), (20 * MIB, whole)]))
    assert found.profile is not None
    assert found.profile.symbols["modules"] == HOST.profile.symbols["modules"]
    assert "copy in the memory of a guest" in found.rejected[0]
    with pytest.raises(TargetNotSupported, match="host kernel was not found"):
        found_in(of_segments([(20 * MIB, whole)]))


def test_a_copy_of_a_module_in_vmalloc_space() -> None:
    """A copy of a ring lies in a buffer of the host: its links lead to the real one."""
    real = module_at(HOST, "kvm_hv")
    data = KernelSpace(HOST.memory, HOST.profile).read(real, LAYOUTS["module"][0])
    # After nx_crypto's own memory, in the same page.
    copy = module_at(HOST, "nx_crypto") - THIS_MODULE + MODULE_SIZE
    found = found_in(changed(HOST, copy, data))
    assert found.profile is not None
    assert found.profile.symbols["modules"] == HOST.profile.symbols["modules"]


def link(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["next", "both"])
def test_a_list_that_does_not_lead_back(both: bool) -> None:
    where = module_at(HOST, "kvm_hv") + LIST
    data = link(where) * 2 if both else link(0xC000_0000_0000_4000)
    memory = changed(HOST, where, data)
    with pytest.raises(InspectorError, match=r"no struct module|lead back|leads back"):
        found_in(memory)


def test_a_module_outside_of_its_own_memory() -> None:
    base = LAYOUTS["module"][1]["core_layout.base"][0]
    memory = HOST.memory
    for name in ("kvm", "kvm_hv"):
        image = Image(memory, HOST.profile, HOST.vm_list, ())
        memory = changed(image, module_at(image, name) + base, link(0xC008_0000_0F00_0000))
    with pytest.raises(TargetNotSupported, match="does not lie in the memory"):
        found_in(memory)


def test_two_lists_of_modules() -> None:
    """Two rings are sound in themselves, so nothing tells which is the kernel's."""
    copy = module_at(HOST, "nx_crypto") - THIS_MODULE + MODULE_SIZE
    real = module_at(HOST, "kvm_hv")
    data = bytearray(KernelSpace(HOST.memory, HOST.profile).read(real, LAYOUTS["module"][0]))
    head = HOST.profile.symbols["linux_banner"] + 48
    data[LIST : LIST + 16] = link(head) * 2
    base = LAYOUTS["module"][1]["core_layout.base"][0]
    data[base : base + 8] = link(copy)
    memory = changed(HOST, copy, bytes(data))
    memory = patch(memory, head & ((1 << 60) - 1), link(copy + LIST) * 2)
    with pytest.raises(TargetNotSupported, match="two lists of modules"):
        found_in(memory)


@pytest.mark.slow
@pytest.mark.parametrize("what", [b"OSRELEASE=", b"SYMBOL(swapper_pg_dir)=", b"SYMBOL(_stext)="])
def test_damaged_vmcoreinfo(what: bytes) -> None:
    text = HOST.profile.vmcoreinfo.encode()
    pointer = HOST.profile.symbols["vmcoreinfo_data"] & ((1 << 60) - 1)
    place = int.from_bytes(HOST.memory.read(pointer, 8), "little") & ((1 << 60) - 1)
    memory = patch(HOST.memory, place + text.index(what), b"?" * (len(what) + 4))
    found = find_kernel(memory)
    assert found.profile is None
    assert "no VMCOREINFO of Linux 6.12.0-fake" in found.missing
