"""DataFrames and CSVs through a forecaster: what comes back and what is written."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from moejax.forecasting.naive import SeasonalNaive
from moejax.forecasting.series import Forecast
from train import cli
from train.forecasts.columns import ColumnOptions
from train.forecasts.frames import LEVELS, Forecasts, forecast_frame
from train.forecasts.items import read_items
from train.forecasts.plot import band_plot, save_plots
from train.progress import counting_bar

HORIZON, SEASON = 6, 24


def sales(shops=("north", "south"), rows: int = 100) -> pd.DataFrame:
    random = np.random.default_rng(0)
    dates = pd.date_range("2024-03-01", periods=rows, freq="h")
    wave = np.sin(2 * np.pi * np.arange(rows) / SEASON)
    parts = [
        pd.DataFrame(
            {"item_id": shop, "timestamp": dates, "target": wave + random.normal(0, 0.1, rows)}
        )
        for shop in shops
    ]
    return pd.concat(parts, ignore_index=True)


def test_frame_in_frame_out():
    frame = sales()
    found = forecast_frame(SeasonalNaive(SEASON), frame, HORIZON, num_samples=200)
    assert list(found) == ["item_id", "timestamp", "mean", *(f"{level:g}" for level in LEVELS)]
    assert list(found.item_id) == ["north"] * HORIZON + ["south"] * HORIZON
    assert found.timestamp[0] == pd.Timestamp("2024-03-05 04:00")
    last = frame[frame.item_id == "south"].target.to_numpy()[-SEASON:][:HORIZON]
    np.testing.assert_allclose(found[found.item_id == "south"]["mean"], last, atol=0.05)
    assert (np.diff(found[[f"{level:g}" for level in LEVELS]], axis=1) >= 0).all()
    assert found.attrs["bad_series"] == {}


def test_frame_of_several_targets_and_chosen_quantiles():
    frame = sales().assign(returns=1.0)
    for multivariate in (False, True):
        found = forecast_frame(
            SeasonalNaive(SEASON),
            frame,
            HORIZON,
            target_columns=["target", "returns"],
            multivariate=multivariate,
            quantiles=[0.25, 0.75],
        )
        assert list(found) == ["item_id", "target_name", "timestamp", "mean", "0.25", "0.75"]
        assert list(found.target_name[:7]) == ["target"] * 6 + ["returns"]
        assert (found[found.target_name == "returns"]["mean"] == 1).all()


def test_bad_series_of_table_and_model_are_named():
    frame = sales(("a", "b", "c"))
    frame.loc[120, "target"] = np.inf
    frame = frame.drop(index=range(200, 280))
    with pytest.warns(UserWarning, match="2 series without forecast:\n  b: .*\n  c: no two of its"):
        found = forecast_frame(SeasonalNaive(SEASON), frame, HORIZON)
    assert set(found.item_id) == {"a"}
    assert set(found.attrs["bad_series"]) == {"b", "c"}
    with pytest.raises(ValueError, match="1 series without forecast"):
        forecast_frame(SeasonalNaive(SEASON), frame[frame.item_id == "b"], HORIZON)


@pytest.mark.parametrize("levels", [(), (0.0, 0.5), (0.5, 1.0), (0.5, 0.1), (0.1, 0.1)])
def test_quantiles_outside(levels):
    with pytest.raises(ValueError, match="must be increasing numbers between 0 and 1"):
        forecast_frame(SeasonalNaive(SEASON), sales(), HORIZON, quantiles=levels)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run `moejax forecast seasonal-naive` on a frame: exit status and what was printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(frame, *options, horizon: int = HORIZON):
        path, out = tmp_path / "own.csv", tmp_path / "out"
        frame.to_csv(path, index=False)
        words = ["--csv", path, "--horizon", horizon, "--out", out, *options]
        status = cli.main(["forecast", "seasonal-naive", *map(str, words)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def test_command_writes_all(command, tmp_path):
    frame = sales()
    frame.loc[5, "target"] = np.nan
    frame = pd.concat([frame, sales(("bad",)).assign(target=np.nan)])
    status, printed = command(frame, "--samples", 20, "--max-plots", 1, "--seed", 3)
    assert status == 0
    assert "2 series, 6 steps each" in printed
    assert "1 series without forecast:\n  bad: none of its 100 rows has a value" in printed
    assert "1 of 2 series are drawn; --max-plots draws more" in printed
    out = tmp_path / "out"
    quantiles = pd.read_csv(out / "quantiles.csv")
    expected = forecast_frame(SeasonalNaive(SEASON), sales(), HORIZON, num_samples=20, seed=3)
    south = expected[expected.item_id == "south"]
    pd.testing.assert_frame_equal(
        quantiles[quantiles.item_id == "south"].drop(columns="timestamp"),
        south.drop(columns="timestamp"),
        rtol=1e-6,
    )
    with np.load(out / "samples.npz") as arrays:
        assert arrays["samples"].shape == (2, 20, HORIZON, 1)
        assert list(arrays["item_id"]) == ["north", "south"]
        assert arrays["targets"].tolist() == [["target"], ["target"]]
        assert arrays["timestamps"][1, 0] == np.datetime64("2024-03-05T04:00")
        np.testing.assert_allclose(
            arrays["samples"][1, :, :, 0].mean(axis=0), south["mean"], rtol=1e-6
        )
    assert pd.read_csv(out / "bad_series.csv").item_id.tolist() == ["bad"]
    settings = json.loads((out / "forecast.json").read_text())
    assert settings["num_series"] == 2
    assert [path.name for path in (out / "plots").iterdir()] == ["north.png"]
    assert not list(out.glob(".*"))


def test_command_where_no_series_is_left(command, tmp_path):
    status, printed = command(sales().assign(target=np.nan))
    assert status == 2
    assert "2 series without forecast" in printed
    assert len(pd.read_csv(tmp_path / "out/bad_series.csv")) == 2
    assert not (tmp_path / "out/quantiles.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--horizon", 0), "horizon is 0; it must be a whole number >= 1"),
        (("--samples", 0), "num_samples is 0"),
        (("--context", 0), "context_length is 0"),
        (("--seed", 2**32), "seed is 4294967296"),
        (("--quantiles", 0.5, 1.5), "must be increasing numbers between 0 and 1"),
        (("--checkpoint", "x"), "seasonal-naive has no parameters"),
        (("--horizon", 10**11), "horizon is 100000000000"),
        (("--horizon", 2**32 - 1, "--samples", 10**5), "GiB are free"),
        (("--item-column", "shop"), "item_column names 'shop'"),
        (("--season", 400), "choose a shorter season"),
    ],
)
def test_wrong_options_are_one_line_errors(command, options, message):
    status, printed = command(sales(), *options)
    assert status == 2
    assert message in printed


def test_wrong_system_and_folder(command, tmp_path, capsys):
    assert cli.main(["forecast", "naive", "--csv", "x.csv", "--horizon", "3"]) == 2
    assert "no file" not in capsys.readouterr().err
    (tmp_path / "out").touch()
    status, printed = command(sales())
    assert status == 2
    assert "cannot be written to" in printed


def items(frame, forecaster, horizon: int = HORIZON, **options) -> Forecasts:
    table = read_items(frame, ColumnOptions(**options), horizon, "the table")
    found = forecaster.forecast([item.history for item in table.items], horizon)
    return Forecasts(items=table.items, forecasts=tuple(found), bad=())


def bands(figure) -> list[str]:
    labels = figure.axes[0].get_legend_handles_labels()[1]
    return [label for label in labels if label.endswith("%")]


def test_plot_shows_bands_of_samples_and_of_quantiles():
    found = items(sales(), SeasonalNaive(SEASON))
    item, forecast = found.items[0], found.forecasts[0]
    assert bands(band_plot(item, forecast)) == ["90 %", "50 %"]
    levels = (0.1, 0.3, 0.5, 0.7, 0.9)
    table = Forecast(levels=levels, quantiles=forecast.at_all(levels))
    assert bands(band_plot(item, table)) == ["80 %", "40 %"]
    one_step = items(sales(), SeasonalNaive(SEASON), 1)
    figure = band_plot(one_step.items[0], one_step.forecasts[0])
    assert bands(figure) == ["90 %", "50 %"]


def test_plot_of_many_targets_says_how_many_it_shows():
    columns = {f"c{i}": np.arange(60.0) + i for i in range(12)}
    frame = pd.DataFrame({"date": pd.date_range("2024", periods=60, freq="h"), **columns})
    found = items(frame, SeasonalNaive(SEASON), multivariate=True)
    figure = band_plot(found.items[0], found.forecasts[0])
    assert len(figure.axes) == 8
    assert figure.get_suptitle() == "series (8 of 12 targets)"


def test_plots_have_names_of_their_own(tmp_path):
    found = items(sales(("a/b", "a b", "..", "a_b_2", "A_B", "5 $ of $x_")), SeasonalNaive(SEASON))
    paths = save_plots(tmp_path, found, 6)
    assert len({path.name.lower() for path in paths}) == 6
    assert all(path.parent == tmp_path / "plots" for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_hold_out_scores_what_is_known(command, tmp_path):
    frame = sales(("a", "b")).assign(hour=lambda table: table.timestamp.dt.hour)
    frame.loc[97, "target"] = np.nan
    frame = pd.concat([frame, sales(("short",), rows=HORIZON).assign(hour=0)])
    words = ("--hold-out", "--known-covariates", "hour", "--samples", 50)
    status, printed = command(frame, *words)
    assert status == 0
    assert "short: it has 6 steps; none is left before the 6 that are held out" in printed
    assert "seasonal naive, points" in printed
    scores = pd.read_csv(tmp_path / "out/scores.csv")
    options = ColumnOptions(known_ahead=("hour",), hold_out=True)
    table = read_items(frame.reset_index(drop=True), options, HORIZON, "the table")
    for item, row in zip(table.items, scores.itertuples(), strict=True):
        target = frame[frame.item_id == item.item_id].target.to_numpy()
        np.testing.assert_array_equal(item.truth[0], target[-HORIZON:])
        np.testing.assert_array_equal(item.history.target[0], target[:-HORIZON])
        assert item.history.known_ahead.shape == (1, 100)
        past = target[:-HORIZON]
        naive = np.nanmean(np.abs(past[SEASON:] - past[:-SEASON]))
        error = np.nanmean(np.abs(target[-HORIZON:] - past[-SEASON:][:HORIZON]))
        assert row.naive_mase == pytest.approx(error / naive, rel=1e-5)
        assert row.mase == pytest.approx(row.naive_mase, rel=0.5)
    settings = json.loads((tmp_path / "out/forecast.json").read_text())
    assert settings["scores"]["season 24"]["seasonal-naive"]["crps"] > 0
    found = Forecasts(
        items=table.items,
        forecasts=tuple(
            SeasonalNaive(SEASON).forecast([item.history for item in table.items], HORIZON)
        ),
        bad=(),
    )
    labels = band_plot(found.items[0], found.forecasts[0]).axes[0].get_legend_handles_labels()[1]
    assert labels[-1] == "truth"


def test_the_bar_tells_rate_and_time_left():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with counting_bar(console, "forecast", 4, "series") as advance:
        for done in (1, 2, 3):
            advance(done)
    assert re.search(r"3/4.* [\d,.]+ series/s.*0:0", text.getvalue())
