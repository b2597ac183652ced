"""The runtime's Chronos forecasts: bins, windows, draws, blocks of quantiles, cards."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lowering.runtime.bolt import BoltCard, BoltForecaster, Quantiles, standardise
from lowering.runtime.chronos import ChronosForecaster
from lowering.runtime.forecasters import read_card
from lowering.runtime.packing import Series
from lowering.runtime.sampling import Sampling
from lowering.runtime.series_files import LEVELS, write_forecasts
from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins, stack_left
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_bolt import normalise
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.lower_chronos import make_card

TOKENS = ChronosConfig(
    n_tokens=32,
    context_length=12,
    prediction_length=5,
    num_samples=3,
    tokenizer_kwargs={"low_limit": -3.0, "high_limit": 3.0},
)
SMALL = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1)
CONFIG = ChronosModelConfig(t5=SMALL, chronos=TOKENS)
CARD = make_card(CONFIG, batch=2)
BOLT = BoltCard(batch=3, context=12, horizon=4, patch=4, stride=4, levels=(0.25, 0.5, 0.75))


class Follows:
    """Says the token after a row's last one, in the first window after the context's last value."""

    def __init__(self):
        self.begun, self.steps = [], []

    def begin(self, ids_BS, mask_BS):
        self.begun.append((ids_BS, mask_BS))

    def logits(self, step, tokens_R):
        self.steps.append(step)
        last = np.repeat(self.begun[-1][0][:, -2], CARD.sizes.samples) if step == 0 else tokens_R
        return np.eye(TOKENS.n_tokens, dtype=np.float32)[(last + 1) % TOKENS.n_tokens]


GREEDY = Sampling(temperature=0.0)


def series(*rows) -> list[Series]:
    return [Series(target=np.asarray(row, float)) for row in rows]


@pytest.mark.parametrize("ends", [True, False])
def test_contexts_are_those_of_the_model(ends):
    """Short, long, missing, flat and far values."""
    config = replace(TOKENS, use_eos_token=ends)
    tokenizer = MeanScaleUniformBins(config)
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(12), rng.standard_normal(5) * 1e6, np.zeros(7), np.full(3, np.nan)]
    rows.append(np.array([1.0, np.nan, 50.0, -50.0, 0.0, 1.0]))
    values_BL = stack_left([row.astype(np.float32) for row in rows])
    wanted = tokenizer.context(values_BL)
    bins = make_card(replace(CONFIG, chronos=config)).bins
    ids, mask, scale = bins.context(values_BL, 20)
    length = wanted.ids.shape[1]
    np.testing.assert_array_equal(ids[:, -length:], wanted.ids)
    np.testing.assert_array_equal(mask[:, -length:], wanted.mask)
    assert not mask[:, :-length].any()
    np.testing.assert_allclose(scale, wanted.scale, rtol=1e-6)
    tokens = rng.integers(0, TOKENS.n_tokens, (len(rows), 4))
    np.testing.assert_allclose(
        bins.values(tokens, wanted.scale), tokenizer.decode(tokens, wanted.scale)
    )


class TestTokens:
    def test_windows_follow_each_other(self):
        steps = Follows()
        forecaster = ChronosForecaster(steps, CARD)
        (found,) = forecaster.forecast(
            series([[0.5, 1.0]]), num_samples=4, horizon=8, sampling=GREEDY
        )
        assert found.shape == (4, 8, 1)
        # 4 samples of 3 rows are two runs, 8 steps of 5 two windows
        assert steps.steps == [*range(5), *range(5), *range(3), *range(3)]
        assert len(steps.begun) == 2
        assert np.all(np.diff(found[0, :, 0]) > 0)

    def test_a_bad_series_does_not_lose_the_others(self):
        heard = []
        rows = series([[1.0, 2.0]], [[np.inf, 1.0]], np.zeros((1, 0)), [[1.0], [2.0]])
        found = ChronosForecaster(Follows(), CARD).forecast(
            rows, sampling=GREEDY, progress=heard.append
        )
        assert [isinstance(one, ValueError) for one in found] == [False, True, True, False]
        assert "infinite" in str(found[1])
        assert found[3].shape == (3, 5, 2)
        assert heard[-1] == 4

    def test_a_series_draws_as_it_does_alone(self):
        class Flat(Follows):
            def logits(self, step, tokens_R):
                return np.zeros((len(tokens_R), TOKENS.n_tokens), np.float32)

        rows = series([[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 7.0]])
        flat = Sampling()
        together = ChronosForecaster(Flat(), CARD).forecast(rows, seed=3)
        alone = ChronosForecaster(Flat(), make_card(CONFIG)).forecast(rows, seed=3)
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one, other)
        assert len(np.unique(together[0])) > 5
        assert flat.temperature == 0.0

    def test_the_end_is_never_drawn(self):
        class Ends(Follows):
            def logits(self, step, tokens_R):
                return np.eye(TOKENS.n_tokens, dtype=np.float32)[np.ones(len(tokens_R), int)]

        (found,) = ChronosForecaster(Ends(), CARD).forecast(series([[1.0]]), sampling=GREEDY)
        ids = CARD.bins.context(found[:, :, 0] / 1.0, 6)[0]
        assert not (ids[:, :-1] == TOKENS.eos_token_id).any()

    @pytest.mark.parametrize("option", ["num_samples", "horizon"])
    def test_nothing_to_forecast(self, option):
        with pytest.raises(ValueError, match=f"{option} is 0"):
            ChronosForecaster(Follows(), CARD).forecast(series([[1.0]]), **{option: 0})


class Echo:
    """A Bolt that says the last value of each row, a little less and a little more."""

    def run(self, inputs):
        last_B = inputs["patches"][:, -1, -1]
        spread_Q = np.array([-0.1, 0.0, 0.1], np.float32)
        return [np.broadcast_to(last_B[:, None, None] + spread_Q[:, None], (BOLT.batch, 3, 4))]


class TestBolt:
    def test_scale_is_that_of_the_model(self):
        rng = np.random.default_rng(0)
        values = rng.standard_normal((4, 9)).astype(np.float32)
        values[0, :4], values[1], values[2] = np.nan, 2.0, np.nan
        for found, wanted in zip(standardise(values), normalise(values), strict=True):
            np.testing.assert_allclose(found, np.reshape(wanted, found.shape), atol=1e-5)

    def test_blocks_follow_each_other(self):
        forecaster = BoltForecaster(Echo(), BOLT)
        found = forecaster.forecast(
            series([[1.0, 2.0, 4.0], [3.0, 1.0, 2.0]], [[np.inf]]), horizon=9
        )
        assert found[0].values.shape == (3, 9, 2)
        np.testing.assert_allclose(found[0].values[1, :4], [[4.0, 2.0]] * 4, rtol=1e-6)
        assert isinstance(found[1], ValueError)
        # of rows that have quantiles of their own, the quantiles of all
        middle = found[0].values[1]
        np.testing.assert_allclose(middle[8], middle[0], rtol=1e-5)
        with pytest.raises(ValueError, match="horizon is 0"):
            forecaster.forecast([], horizon=0)

    def test_levels_between_and_beyond(self):
        found = Quantiles((0.2, 0.6), np.array([[[1.0]], [[5.0]]]))
        np.testing.assert_allclose(found.at([0.1, 0.2, 0.4, 0.9])[:, 0, 0], [1, 1, 3, 5])
        assert Quantiles((0.5,), np.ones((1, 2, 1))).at(LEVELS).shape == (9, 2, 1)

    def test_quantiles_as_files(self, tmp_path):
        found = {"a": Quantiles(BOLT.levels, np.arange(12.0).reshape(3, 4, 1))}
        write_forecasts(tmp_path / "f.csv", found)
        assert (tmp_path / "f.csv").read_text().splitlines()[1].startswith("a,0,1,4,0,")
        write_forecasts(tmp_path / "f.npz", found)
        with np.load(tmp_path / "f.npz") as file:
            assert sorted(file) == ["levels", "quantiles", "series"]
            assert file["quantiles"].shape == (9, 1, 4, 1)


@pytest.mark.parametrize("card", [CARD, BOLT])
def test_cards(card, tmp_path):
    place = tmp_path / "forecaster.json"
    place.write_text(json.dumps(card.to_json()))
    assert read_card(tmp_path) == card
    place.write_text(json.dumps({"schema": 2, "kind": card.to_json()["kind"]}))
    with pytest.raises(ValueError, match="does not describe a forecaster"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"context": 13}, "context at most 12"),
        ({"batch": 0}, "at least 1"),
        ({"samples": 0}, "at least 1"),
        ({"batch": 8, "samples": 9}, "72 rows; a program holds up to 64"),
    ],
)
def test_sizes_that_do_not_fit(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_card(CONFIG, **sizes)
