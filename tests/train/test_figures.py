"""Every figure draws, for one expert and many, one channel and many, and leaves no global state."""

import matplotlib
import numpy as np
import pytest

from train import figures, lm_figures, program_figures
from train.metrics import expert_usage

HEADER = b"\x89PNG"


def window(rng, channels: int, experts: int) -> figures.Window:
    dates = np.datetime64("2018-01-01T00:00:00") + np.arange(60) * np.timedelta64(3600, "s")
    heads = rng.normal(size=(experts, 24, channels))
    gate = rng.dirichlet(np.ones(experts), channels).T
    return figures.Window(
        dates=dates,
        context=rng.normal(size=(36, channels)),
        truth=rng.normal(size=(24, channels)),
        forecast=(heads * gate[:, None]).sum(axis=0),
        experts=heads,
        gate=gate,
    )


@pytest.mark.parametrize(("channels", "experts", "count"), [(1, 1, 1), (3, 4, 2)])
@pytest.mark.parametrize("draw", [figures.forecasts, figures.expert_forecasts])
def test_forecasts(draw, channels, experts, count):
    rng = np.random.default_rng(0)
    names = [f"a long name of channel {i}" for i in range(channels)]
    before = dict(matplotlib.rcParams)
    figure = draw([window(rng, channels, experts) for _ in range(count)], names)
    assert len(figure.axes) == channels * count
    assert figures.png(figure, dpi=40).startswith(HEADER)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("channels", "experts"), [(1, 1), (7, 4), (21, 12)])
def test_experts(channels, experts):
    rng = np.random.default_rng(1)
    gate = np.moveaxis(rng.dirichlet(np.ones(experts), (50, channels)), 2, 1)
    dates = np.datetime64("2018-01-01T00:00:00") + np.arange(50) * np.timedelta64(3600, "s")
    names = tuple(f"channel {i}" for i in range(channels))
    usage = expert_usage(gate, dates, names)
    assert np.isnan(usage["weekday"]).any()
    for figure in (figures.expert_usage(usage), figures.router_weights(dates, gate, names)):
        assert figures.png(figure, dpi=40).startswith(HEADER)


def test_learning_curves():
    history = [{"epoch": i, "train_loss": 1 / i, "val_mse": 1 / i} for i in (1, 2, 3)]
    figure = figures.learning_curves(history, [1e-3, 1e-3, 5e-4], best_epoch=3)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "learning rate"]
    assert figures.png(figure, dpi=40).startswith(HEADER)


def test_programs():
    rows = [
        {"op": i, "call": "linear", "relative_l2": value, "ok": value < 1e-2}
        for i, value in enumerate([0.0, 1e-5, 1.0])
    ]
    figure = program_figures.parity({"P1": rows, "P2": rows[1:]}, 0.1)
    assert figures.png(figure, dpi=40).startswith(HEADER)
    cost = {"bytes": 4096, "flops": 1000, "time_us": 2.5}
    costs = [
        {"index": i, "name": "linear", "bound": bound, **cost}
        for i, bound in enumerate(program_figures.BOUNDS)
    ]
    assert figures.png(program_figures.op_costs(costs, "N150"), dpi=40).startswith(HEADER)


@pytest.mark.parametrize(("layers", "experts"), [(1, 2), (6, 24)])
def test_language_models(layers, experts):
    share = np.random.default_rng(0).dirichlet(np.ones(experts), layers)
    history = [
        {
            "step": 10 * n,
            "train_loss": 3 / n,
            "val_bits_per_byte": 4 / n,
            "cpu_seconds": 60.0 * n,
            "expert_load": share.tolist(),
        }
        for n in (1, 2, 3)
    ]
    usage = {"share": share, "layers": [f"layers_{i}" for i in range(layers)], "rows": 9}
    drawn = (
        lm_figures.learning_curves(history, [1e-3, 5e-4, 1e-4], 2048),
        lm_figures.expert_usage(usage),
        lm_figures.expert_load(history),
        lm_figures.comparison({"one": history, "two": history[:2]}, "bits_per_byte"),
    )
    assert len(drawn[2].axes) >= layers
    assert all(figures.png(figure, dpi=40).startswith(HEADER) for figure in drawn)
