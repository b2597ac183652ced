"""Settings for every test: strict JAX that compiles fast, and where shared material lies."""

import os
from pathlib import Path

import jax
import pytest

from tests.device.table import markdown

jax.config.update("jax_numpy_rank_promotion", "raise")
# most of a test's time is compiling: here and in the processes that tests start
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MOEJAX_SHARED", ROOT.parent / "shared"))


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("auto", "required"),
        default="auto",
        help="required: tests marked `device` fail, not skip, without a card or simulator",
    )
    parser.addoption(
        "--device-table",
        type=Path,
        metavar="FILE",
        help="write what tests marked `device` measured to this Markdown file",
    )


def pytest_runtest_setup(item):
    """Tests marked `device` run where there is a Tenstorrent card or the simulator."""
    if not list(item.iter_markers("device")):
        return
    if os.environ.get("TT_METAL_SIMULATOR") or Path("/dev/tenstorrent").exists():
        return
    missing = "needs a Tenstorrent card or the simulator (TT_METAL_SIMULATOR)"
    if item.config.getoption("--device") == "required":
        pytest.fail(missing)
    pytest.skip(missing)


def pytest_terminal_summary(terminalreporter, config):
    """The table of measurements, passed and failed."""
    place = config.getoption("--device-table")
    if place is None:
        return
    reports = [
        report
        for outcome in ("passed", "failed", "xfailed")
        for report in terminalreporter.stats.get(outcome, ())
    ]
    found = {report.nodeid: dict(report.user_properties).get("device") for report in reports}
    rows = [row for row in found.values() if row]
    place.write_text(markdown(rows))
    terminalreporter.write_line(f"{len(rows)} measurements: {place}")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_let_go():
    """What a file's tests compiled is unloaded: Linux maps 65,530 pieces of memory a process.

    Each compiled function takes several; over all files they run out, and XLA crashes.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def shared() -> Path:
    """The folder of recorded references and data sets; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the folder of recorded references, {SHARED}")
    return SHARED


@pytest.fixture
def getkey():
    """A function that returns a fresh random key at each call."""
    key = jax.random.key(0)

    def next_key():
        nonlocal key
        key, fresh = jax.random.split(key)
        return fresh

    return next_key
