"""The mock device's parts: descriptor, stand-in compiler, runtime root, error texts."""

import importlib.util
import os
import struct
import subprocess
import sys

import pytest

from lowering import mock
from lowering.isolate import call

needs_ttnn = pytest.mark.skipif(
    importlib.util.find_spec("ttnn") is None, reason="needs ttnn (extra `device`, Linux x86-64)"
)
FATAL = """TT_FATAL @ /project/ttnn/cpp/matmul.cpp:12: a == b
info:
The width of the first tensor
must be equal
backtrace:
 --- ttnn::matmul(...)
"""


def test_stub_is_an_executable_with_an_empty_relocation_section():
    elf = mock.stub_elf()
    kind, machine, _, entry, programs, sections = struct.unpack_from("<HHIIII", elf, 16)
    assert elf[:6] == b"\x7fELF\x01\x01"
    assert (kind, machine, entry) == (2, mock.RISCV, 0)
    load, offset, address, _, size, memory, flags, _ = struct.unpack_from("<8I", elf, programs)
    assert (load, address, size, memory, flags) == (1, 0, 4, 4, 5)
    assert elf[offset : offset + size] == b"\x67\x80\x00\x00"
    relocations = struct.unpack_from("<10I", elf, sections + 2 * 40)
    assert (relocations[1], relocations[5], relocations[7]) == (4, 0, 1)


def test_compiler_writes_what_tt_metal_asks_for(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(mock.compiler_script())

    def compile_to(*arguments):
        return subprocess.run(
            ["sh", compiler, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert len(compile_to("--version").splitlines()) == 1
    compile_to("-O3", "-Wall", "-c", "-o", "a b.o", "kernel.cc", "-MF", "a b.d")
    assert (tmp_path / "a b.o").read_bytes() == b""
    assert (tmp_path / "a b.d").read_text() == "a b.o:\n"
    assert compile_to("-T", "kernel.ld", "a.o", "-o", "kernel.elf") == ""
    assert (tmp_path / "kernel.elf").read_bytes() == mock.stub_elf()


@pytest.mark.parametrize("arch", mock.BOARDS)
def test_descriptor_names_one_chip(arch):
    text = mock.cluster_descriptor(arch)
    assert f"arch: {{0: {arch}}}" in text
    assert mock.BOARDS[arch].boardtype in text


def test_unknown_chip_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'grayskull'.*wormhole_b0, blackhole"):
        mock.cluster_descriptor("grayskull")


@needs_ttnn
def test_environment_makes_a_root_of_links_beside_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEJAX_CACHE", str(tmp_path))
    variables = mock.environment("blackhole")
    root = tmp_path / "mock" / os.path.basename(variables["TT_METAL_RUNTIME_ROOT"])
    assert (root / "tt_metal").is_symlink()
    assert (root / "runtime/hw").is_symlink()
    assert os.access(root / mock.COMPILER, os.X_OK)
    assert variables["TT_METAL_CACHE"].endswith("/")
    assert variables["TT_METAL_SIMULATOR"] is None
    assert mock.environment("blackhole") == variables
    leftovers = [path for path in root.rglob(".*") if path.name.startswith(".")]
    assert not leftovers


@needs_ttnn
def test_unwritable_cache_is_replaced_by_a_temporary_folder(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MOEJAX_CACHE", str(blocked))
    assert mock.cache_folder().is_dir()


def test_activate_refuses_after_the_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "ttnn", object())
    with pytest.raises(RuntimeError, match="already imported"):
        mock.activate("wormhole_b0")


def test_apply_sets_and_unsets(monkeypatch):
    monkeypatch.setenv("MOEJAX_TEST_OLD", "1")
    monkeypatch.setenv("MOEJAX_TEST_NEW", "1")
    mock.apply({"MOEJAX_TEST_OLD": None, "MOEJAX_TEST_NEW": "2"})
    assert os.environ.get("MOEJAX_TEST_OLD") is None
    assert os.environ["MOEJAX_TEST_NEW"] == "2"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (FATAL, "The width of the first tensor must be equal"),
        ("Chip 0 has no board\nLocation: /a.cpp:1\n 1. f()", "Chip 0 has no board"),
        ("plain\n text", "plain text"),
        ("f(): incompatible function arguments.\n\nInvoked with types: a", "f(): incompatible"),
        ("", ""),
    ],
)
def test_fatal_text_leaves_the_message(message, text):
    assert mock.fatal_text(message).startswith(text)
    assert "backtrace" not in mock.fatal_text(message)


@needs_ttnn
@pytest.mark.parametrize(("arch", "cores"), [("wormhole_b0", [8, 8]), ("blackhole", [11, 10])])
def test_device_opens(arch, cores):
    found = call("lowering.backends.ttnn:describe_device", None, env=mock.environment(arch))
    assert found == {"kind": "mock", "arch": arch, "cores": cores}


@needs_ttnn
def test_command_prints_an_environment_for_the_shell():
    run = subprocess.run(
        [sys.executable, "-m", "lowering.mock", "wormhole_b0"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = run.stdout.splitlines()
    assert any(line.startswith("export TT_METAL_RUNTIME_ROOT=") for line in lines)
    assert "unset TT_METAL_SIMULATOR" in lines
