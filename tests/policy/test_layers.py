"""Who may import whom: moejax < lowering < train, and ttnn only where programs run."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("moejax", "lowering", "train")
TTNN = ("lowering/runtime/", "lowering/backends/ttnn.py")
STDLIB = sys.stdlib_module_names
# what a file under this path may import beside the standard library; the longest match counts
ALLOWED = {
    "moejax/": ("moejax", "jax", "flax", "numpy"),
    "moejax/interop/": (
        *("moejax", "jax", "flax", "numpy", "ml_dtypes"),
        *("safetensors", "tokenizers", "huggingface_hub"),
    ),
    "moejax/interop/gluonts.py": ("moejax", "numpy", "gluonts"),
    "lowering/": ("lowering", "moejax.regions", "moejax.layers", "jax", "numpy", "ml_dtypes"),
    "lowering/save.py": ("lowering", "jax", "numpy", "ml_dtypes", "safetensors"),
    "lowering/backends/ttnn.py": ("lowering", "numpy", "ml_dtypes", "ttnn"),
    "lowering/runtime/": (
        "lowering.runtime",
        "lowering.ir",
        "lowering.ops",
        "numpy",
        "safetensors",
        "ttnn",
    ),
}
# modules that machines without jax import: what they import must not reach jax either
WITHOUT_JAX = ("lowering", "lowering.ir", "lowering.ops", "lowering.runtime")


def sources() -> list[Path]:
    return [path for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, inside functions too, and by text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative; write the full name"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            argument = node.args[0]
            if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
                yield node.lineno, str(argument.value)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def offences(path: Path) -> list[str]:
    """Imports of a file that its place does not allow."""
    place = path.relative_to(ROOT).as_posix()
    rules = [prefix for prefix in ALLOWED if place.startswith(prefix)]
    found = []
    for line, name in imports(path):
        if within(name, ("ttnn",)) and not place.startswith(TTNN):
            found.append(f"{place}:{line} imports ttnn; only {' and '.join(TTNN)} may")
        elif rules and name.split(".")[0] not in STDLIB:
            allowed = ALLOWED[max(rules, key=len)]
            if not within(name, allowed):
                found.append(f"{place}:{line} imports {name}; allowed: {', '.join(allowed)}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stay_in_their_layer(path):
    assert not offences(path)


def test_the_scan_sees_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[offences.__module__], "ROOT", tmp_path)
    bad = {
        "moejax/a.py": "import lowering.api",
        "moejax/b.py": "def f():\n    from train.loop import train",
        "lowering/a.py": "import moejax.models.mole",
        "lowering/b.py": "from train import cli",
        "lowering/c.py": "def f():\n    import ttnn",
        "lowering/d.py": "import importlib\nx = importlib.import_module('ttnn')",
        "lowering/runtime/a.py": "import jax.numpy as jnp",
        "lowering/runtime/b.py": "from lowering.api import lower",
        "train/a.py": "import ttnn",
    }
    for name, text in bad.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        assert len(offences(path)) == 1, name


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_runs_without_jax(module):
    code = (
        f"import sys, {module}; "
        "bad = {'jax', 'flax', 'ml_dtypes', 'ttnn', 'train', 'moejax'} & sys.modules.keys(); "
        "sys.exit(', '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"importing {module} also imports: {done.stderr}"
