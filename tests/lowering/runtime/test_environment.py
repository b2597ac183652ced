"""The runtime where there is no jax: a fresh environment with ttnn, numpy 1 and safetensors."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowering import mock
from train.lower import lower_source

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("ttnn==0.81.1", "numpy<2", "safetensors")
OFFLINE = ("dns error", "error sending request", "client error (Connect)", "Network is unreachable")
MODULES = ("jax", "flax", "torch")


def find_uv():
    """A command that starts uv, or None."""
    local = ROOT / ".uv/bin/uv"
    if local.is_file():
        return [str(local)]
    if found := shutil.which("uv"):
        return [found]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of a new environment that holds PACKAGES and nothing of ours."""
    uv = find_uv()
    if uv is None:
        pytest.skip("needs uv: `make setup` puts it into .uv/")
    if importlib.util.find_spec("ttnn") is None:
        pytest.skip("ttnn has no wheel for this machine")
    place = tmp_path_factory.mktemp("bare") / "venv"
    options = {"check": True, "capture_output": True, "text": True, "timeout": 240}
    try:
        # outside the project: its settings override numpy's version
        subprocess.run(
            [*uv, "venv", "-q", "-p", sys.executable, place], cwd=place.parent, **options
        )
        interpreter = place / "bin/python"
        install = [*uv, "pip", "install", "-q", "--system-certs", "-p", interpreter, *PACKAGES]
        subprocess.run(install, cwd=place.parent, **options)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the network is too slow to install {PACKAGES}")
    except subprocess.CalledProcessError as error:
        if any(word in error.stderr for word in OFFLINE):
            pytest.skip(f"no network to install {PACKAGES}: {error.stderr}")
        raise AssertionError(error.stderr) from error
    return interpreter


def run(python, arguments, arch=None):
    variables = mock.environment(arch) if arch else {}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [python, *arguments],
        env={name: value for name, value in env.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_import_brings_in_neither_jax_nor_ttnn():
    heavy = {*MODULES, "ml_dtypes", "ttnn"}
    code = f"import lowering.runtime.__main__, sys; print(sorted({heavy} & sys.modules.keys()))"
    done = run(Path(sys.executable), ["-c", code])
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_environment_is_bare(python):
    code = f"import importlib.util as u; print([m for m in {MODULES} if u.find_spec(m)])"
    assert run(python, ["-c", code]).stdout.strip() == "[]"
    version = run(python, ["-c", "import numpy; print(numpy.__version__)"]).stdout
    assert version.startswith("1.")


@pytest.mark.slow
def test_saved_program_runs_without_jax(python, saved, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["-m", "lowering.runtime", str(saved), "--bisect", "--json", str(report)]
    done = run(python, arguments, "wormhole_b0")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert (found["kind"], found["arch"], found["ok"]) == ("mock", "wormhole_b0", True)
    assert len(found["outputs"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("moirai_moe/model_c", {"context": 32, "horizon": 20}),
        ("chronos/moe_design_shared_then_expert", {"context": 20}),
        ("chronos/bolt_random", {}),
    ],
)
def test_saved_forecaster_forecasts_without_jax(python, tmp_path, model, sizes):
    source = str(ROOT / "tests/fixtures" / model)
    lower_source(source, tmp_path / "p", check="none", batch=2, **sizes)
    series, out = tmp_path / "series.csv", tmp_path / "forecast.csv"
    series.write_text("day,a,b\n" + "".join(f"d{i},{i % 7},{i * i}\n" for i in range(40)))
    files = ["--forecast", str(series), "--out", str(out), "--samples", "3"]
    done = run(python, ["-m", "lowering.runtime", str(tmp_path / "p"), *files], "wormhole_b0")
    assert done.returncode == 0, done.stdout + done.stderr
    card = json.loads((tmp_path / "p/forecaster.json").read_text())
    horizon = card.get("horizon") or card["sizes"]["horizon"]
    assert len(out.read_text().splitlines()) == 1 + 2 * horizon
