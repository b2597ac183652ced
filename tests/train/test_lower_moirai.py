"""A MOIRAI-MoE as a program folder: its sizes, and forecasts as the model makes them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering.backends.reference import HostSession
from lowering.runtime.folder import load
from lowering.runtime.forecast import Forecaster
from lowering.runtime.forecasters import read_card
from lowering.runtime.packing import Series
from moejax.forecasting.moirai.arrange import arrange
from moejax.forecasting.moirai.autoregress import Plan, given, roll_out
from moejax.forecasting.moirai.packing import Window, layout_of, pack
from moejax.models.moirai_moe import MoiraiMoEConfig
from train.cli import main
from train.lower_moirai import choose_sizes, find_moirai, forward, make_card

MODELS = Path(__file__).parents[1] / "fixtures/moirai_moe"
# a mixture with the scaler; a single component without it
MODEL_A, MODEL_C = MODELS / "model_a", MODELS / "model_c"
CONTEXT, HORIZON, SAMPLES = 64, 40, 3
SIZES = {"context": CONTEXT, "horizon": HORIZON, "batch": 2}


class Flax:
    """The model in the place of its program; keeps what it was asked and what it gave."""

    def __init__(self, source, card):
        self._variables = source.variables
        self._call = jax.jit(forward(source.config, card.sizes))
        self.found = []

    def run(self, inputs):
        results = self._call(self._variables, *inputs.values())
        results = [np.asarray(x) for x in jax.tree.leaves(results)]
        self.found.append((inputs["read"], *results))
        return results

    def reset(self):
        pass


def series() -> Series:
    return Series(target=np.cumsum(np.random.default_rng(0).normal(size=(1, CONTEXT)), axis=1))


def samples(run, card) -> np.ndarray:
    (found,) = Forecaster(run, card).forecast([series()], num_samples=SAMPLES, seed=1)
    assert isinstance(found, np.ndarray)
    return found


def test_folder_forecasts_as_the_model_does(tmp_path):
    out = tmp_path / "program"
    sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    options = ["--out", str(out), "--policy", "float32", "--check", "none"]
    assert main(["lower", str(MODEL_C), *options, *sizes]) == 0
    card, folder = read_card(out), load(out)
    found = samples(HostSession(folder.program, folder.weights, "exact"), card)
    assert found.shape == (SAMPLES, HORIZON, 1)
    assert np.unique(found[:, -1]).size == SAMPLES
    wanted = samples(Flax(find_moirai(str(MODEL_C)), card), card)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_loop_is_that_of_the_model():
    """Location and scale at every step, of the model's own loop with the same draws."""
    source = find_moirai(str(MODEL_A))
    assert source is not None
    card = make_card(source.config, choose_sizes(source.config, **SIZES))
    flax = Flax(source, card)
    drawn = samples(flax, card)
    values = series().target.astype(np.float32).T[None]
    seen = np.ones_like(values, bool)
    window = Window(target=values, observed=seen, pad=~seen[..., 0])
    layout = layout_of(window, HORIZON, 16)
    tokens = arrange(pack(window, HORIZON, patch=16, width=16), layout, layout.past)
    plan = Plan(targets=1, past=4, known=4, patches=3, samples=SAMPLES)
    cells = np.pad(drawn[..., 0], ((0, 0), (0, 48 - HORIZON))).reshape(SAMPLES, 3, 1, 1, 16)
    _, (first, *later) = roll_out(
        source.config, plan, source.variables, tokens, jnp.asarray(cells), draw=given, record=True
    )
    calls = flax.found
    # one call for the first step, then for each two samples a call a step
    by_step = [calls[:1], [calls[1], calls[3]], [calls[2], calls[4]]]
    for part, name in ((2, "loc"), (3, "scale")):
        theirs = [getattr(first, name), *(x for loop in later for x in getattr(loop, name))]
        for step, array in zip(by_step, theirs, strict=True):
            wanted = np.asarray(array).reshape(-1)
            found = [call[part][row, call[0][row, 0], 0] for call in step for row in range(2)]
            np.testing.assert_allclose(found[: len(wanted)], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "32"], "is a MOIRAI-MoE, which takes no prompt"),
        (["--horizon", "0"], "horizon is 0"),
        (["--batch", "-1"], "batch is -1"),
        (["--patch-size", "7"], r"patch_size is 7; this model knows \(16,\)"),
        (["--context", "100000"], "max_seq_len"),
    ],
)
def test_unfit_options(options, words, tmp_path, capsys):
    assert main(["lower", str(MODEL_A), "--out", str(tmp_path / "p"), *options]) == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))
    assert not (tmp_path / "p").exists()


def test_sizes_without_options():
    sizes = choose_sizes(MoiraiMoEConfig())
    assert (sizes.batch, sizes.context, sizes.horizon, sizes.patch) == (1, 512, 96, 16)
    assert sizes.tokens == 37
    small = choose_sizes(MoiraiMoEConfig(max_seq_len=16, patch_sizes=(8, 32)))
    assert (small.patch, small.context, small.tokens) == (32, 416, 15)


def test_other_folders_are_none(tmp_path):
    assert find_moirai(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("[1]")
    assert find_moirai(str(tmp_path)) is None
