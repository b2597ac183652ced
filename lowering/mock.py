"""ttnn's mock device on any x86-64 Linux machine: no card, no vendor toolchain, no root rights.

The mock runs ttnn's real validation, program creation and allocators; it computes no numbers, takes
no time and cannot see how large a kernel's code is. `environment(arch)` makes a runtime root (a
folder of links to the installed ttnn package, with a stand-in for the kernel compiler) and returns
the variables that must be set before `import ttnn`; `lowering.isolate` runs functions in child
processes with them. An installed card or vendor toolchain is left alone: the root has its own.

`python -m lowering.mock` is a self-check; `eval "$(python -m lowering.mock wormhole_b0)"` makes
the ttnn of a shell's processes a mock.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import struct
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from lowering.ir import Arch

RISCV = 243
COMPILER = "runtime/sfpi/compiler/bin/riscv-tt-elf-g++"


@dataclass(frozen=True, kw_only=True)
class Board:
    """One chip of a board as UMD's cluster descriptor states it; masks name the parts that are
    switched off.
    """

    boardtype: str
    family: int
    harvest_mask: int
    eth_harvesting_mask: int = 0
    pcie_harvesting_mask: int = 0
    dram_harvesting_mask: int = 0
    l2cpu_harvesting_mask: int = 0

    def masks(self) -> dict[str, int]:
        return {name: mask for name, mask in asdict(self).items() if name.endswith("_mask")}


BOARDS: dict[Arch, Board] = {
    # one of ten rows of cores is off; 8x8 cores are left for programs
    "wormhole_b0": Board(boardtype="n150", family=0x18, harvest_mask=0x1),
    # two of fourteen columns are off; 11x10 cores are left for programs
    "blackhole": Board(
        boardtype="p150",
        family=0x40,
        harvest_mask=0x3,
        eth_harvesting_mask=0x120,
        pcie_harvesting_mask=0x2,
    ),
}


def cluster_descriptor(arch: Arch) -> str:
    """A cluster of one chip in UMD's YAML; ValueError for an unknown chip."""
    if arch not in BOARDS:
        raise ValueError(f"unknown chip {arch!r}; the mock knows {', '.join(BOARDS)}")
    board = BOARDS[arch]
    kind = board.boardtype
    parts = f"{{board_id: {board.family << 36}}}, {{board_type: {kind}}}, {{chips: [0]}}"
    fields = {
        "arch": f"{{0: {arch}}}",
        "chips": "{0: [0, 0, 0, 0]}",
        "chips_with_mmio": "[{0: 0}]",
        "ethernet_connections": "[]",
        "chip_to_boardtype": f"{{0: {kind}}}",
        "boards": f"[[{parts}]]",
        "harvesting": f"{{0: {json.dumps({'noc_translation': True, **board.masks()})}}}",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items())


def stub_elf() -> bytes:
    """The smallest RISC-V executable that tt-metal's loader takes: one instruction and an empty
    relocation table.
    """
    header, program_header = 52, 32
    text = struct.pack("<I", 0x00008067)  # ret
    names = b"\0.text\0.rela.text\0.shstrtab\0"
    start = header + program_header
    strings = start + len(text)
    table = -(-(strings + len(names)) // 4) * 4
    ident = b"\x7fELF" + bytes((1, 1, 1)).ljust(12, b"\0")
    fields = (2, RISCV, 1, 0, header, table, 0, header, program_header, 1, 40, 4, 3)
    segment = struct.pack("<8I", 1, start, 0, 0, len(text), len(text), 5, 4)
    sections = (
        (0,) * 10,
        (names.index(b".text"), 1, 6, 0, start, len(text), 0, 0, 4, 0),
        (names.index(b".rela.text"), 4, 0, 0, strings, 0, 0, 1, 4, 12),
        (names.index(b".shstrtab"), 3, 0, 0, strings, len(names), 0, 0, 1, 0),
    )
    body = ident + struct.pack("<HHIIIIIHHHHHH", *fields) + segment + text + names
    return body.ljust(table, b"\0") + b"".join(struct.pack("<10I", *s) for s in sections)


def compiler_script() -> str:
    """A stand-in for the kernel compiler: POSIX shell built-ins only, so that a call costs one
    process.
    """
    octal = "".join(f"\\{byte:03o}" for byte in stub_elf())
    return f"""#!/bin/sh
# Writes an empty object, or a one-instruction executable, in place of a compiled kernel.
[ "$1" = --version ] && {{ echo 'riscv-tt-elf-g++ (stand-in of a mock device) 1.0'; exit 0; }}
output= rules= previous=
for argument; do
  case $previous in
    -o) output=$argument ;;
    -MF) rules=$argument ;;
  esac
  previous=$argument
done
[ -z "$output" ] || case $output in
  *.elf) printf '{octal}' >"$output" ;;
  *) : >"$output" ;;
esac
[ -z "$rules" ] || printf '%s:\\n' "$output" >"$rules"
"""


def find_package() -> Path:
    """The installed ttnn package; ValueError with what to do when there is none."""
    spec = importlib.util.find_spec("ttnn")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "ttnn is not installed for this python; install the extra `device`"
            " (Linux on x86-64, Python 3.12)"
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def cache_folder() -> Path:
    """Where mock devices keep their files: $MOEJAX_CACHE, else the user's cache, else a fresh
    temporary folder.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MOEJAX_CACHE") or Path(home) / "moejax") / "mock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="moejax-mock-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="moejax-mock-"))


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write in one step, so that another process never reads a half-written file."""
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)


def _link(place: Path, target: Path) -> None:
    if place.is_symlink() and place.readlink() == target:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    fresh.symlink_to(target)
    fresh.replace(place)


def make_root(folder: Path | None = None) -> Path:
    """A runtime root for tt-metal inside `folder` (default: the cache), named after what it is made
    of.
    """
    package = find_package()
    script = compiler_script()
    made_of = f"{package} {importlib.metadata.version('ttnn')} {script}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    root = (folder or cache_folder()).resolve() / digest
    for entry in package.iterdir():
        if entry.name not in ("runtime", "__pycache__"):
            _link(root / entry.name, entry)
    _link(root / "runtime/hw", package / "runtime/hw")
    _write(root / COMPILER, script, mode=0o755)
    return root


def environment(arch: Arch, folder: Path | None = None) -> dict[str, str | None]:
    """Variables (None: must be unset) under which `ttnn.open_device` opens a mock of this chip."""
    descriptor = cluster_descriptor(arch)
    root = make_root(folder)
    _write(root / f"{arch}.yaml", descriptor)
    kernels = root / f"kernels-{arch}"
    kernels.mkdir(exist_ok=True)
    return {
        "TT_METAL_MOCK_CLUSTER_DESC_PATH": str(root / f"{arch}.yaml"),
        "TT_METAL_RUNTIME_ROOT": str(root),
        "TT_METAL_CACHE": f"{kernels}/",
        "TT_METAL_LOGS_PATH": str(kernels),
        "TT_METAL_LOGGER_LEVEL": "error",
        "LOGURU_LEVEL": "ERROR",
        "TT_METAL_HOME": None,
        "TT_METAL_SIMULATOR": None,
        "TT_METAL_SLOW_DISPATCH_MODE": None,
        "TT_METAL_VISIBLE_DEVICES": None,
    }


def activate(arch: Arch) -> None:
    """Make this process's ttnn a mock; RuntimeError when ttnn has been imported already."""
    if "ttnn" in sys.modules:
        raise RuntimeError("ttnn is already imported; activate the mock before the first import")
    apply(environment(arch))


def apply(variables: dict[str, str | None]) -> None:
    """Set variables of this process; None unsets."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def fatal_text(message: str) -> str:
    """What a ttnn error says, without place and backtrace: one line."""
    if found := re.search(r"info:\s*(.*?)\s*(?:\nbacktrace:|\Z)", message, re.DOTALL):
        message = found[1]
    elif "TT_FATAL" in message or "TT_THROW" in message:
        message = re.split(r"\nbacktrace:", message)[0]
    elif found := re.search(r"\A(.*?)\nLocation: ", message, re.DOTALL):
        message = found[1]
    elif "incompatible function arguments" in message:
        message = message.split("\n\nInvoked with types:")[0]
    return " ".join(message.split())


def main() -> None:
    """Self-check; with a chip's name, print its environment for `eval "$(...)"`."""
    from lowering.isolate import call

    for arch in sys.argv[1:]:
        for name, value in environment(cast(Arch, arch)).items():
            quoted = shlex.quote(value or "")
            print(f"unset {name}" if value is None else f"export {name}={quoted}")
    for arch in () if sys.argv[1:] else BOARDS:
        found = call("lowering.backends.ttnn:describe_device", None, env=environment(arch))
        print(f"{arch}: {json.dumps(found)}")


if __name__ == "__main__":
    main()
