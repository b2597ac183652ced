"""Packing, draws, the sampling loop and the files of the runtime's forecasts."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering.runtime.distributions import KINDS, Mixture
from lowering.runtime.forecast import Card, Forecaster
from lowering.runtime.forecasters import read_card
from lowering.runtime.packing import ForecastSizes, Series, pack
from lowering.runtime.series_files import LEVELS, read_series, write_forecasts
from moejax.distributions import Distribution, DistributionConfig
from moejax.distributions.components import KINDS as MODEL_KINDS
from moejax.forecasting.missing import causal_mean, zeros
from moejax.forecasting.moirai.arrange import arrange, known_tokens, leading
from moejax.forecasting.moirai.packing import Window, layout_of
from moejax.forecasting.moirai.packing import pack as model_pack

SIZES = ForecastSizes(batch=3, context=12, horizon=10, patch=4, width=4)
MIXTURE = Mixture(components=("normal_fixed_scale",), fixed_scales=(1e-9,), mixture=False)


def series(length: int, sizes: ForecastSizes, seed: int = 0) -> Series:
    """Noise with gaps, none at its end."""
    rng = np.random.default_rng([seed, length])

    def noise(variates: int, steps: int) -> np.ndarray | None:
        values = rng.normal(3, 1, (variates, steps))
        values[:, : steps // 3] = np.where(rng.random((variates, steps // 3)) < 0.5, np.nan, 1)
        return values if variates else None

    target = noise(sizes.targets, length)
    assert target is not None
    return Series(
        target=target,
        known_ahead=noise(sizes.known_ahead, length + sizes.horizon),
        past_only=noise(sizes.past_only, length),
    )


class TestPacking:
    @pytest.mark.parametrize("length", [1, 5, 12, 13, 40])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"context": 13},
            {"width": 8, "horizon": 3},
            {"targets": 2, "known_ahead": 1, "past_only": 2, "context": 11},
        ],
        ids=str,
    )
    def test_equals_the_models(self, options, length):
        sizes = replace(SIZES, **options)
        one = series(length, sizes)
        window = _window(one, sizes)
        layout = layout_of(window, sizes.horizon, sizes.patch)
        tokens = model_pack(window, sizes.horizon, patch=sizes.patch, width=sizes.width)
        wanted = leading(arrange(tokens, layout, layout.past), sizes.tokens)
        assert sizes.known == known_tokens(layout, layout.past)
        row = pack(one, sizes)
        np.testing.assert_allclose(row.target, wanted.target[0], rtol=1e-6)
        counted = wanted.observed_mask & ~wanted.prediction_mask[..., None]
        np.testing.assert_array_equal(row.counted, counted[0])
        for mine, theirs in (("sample", "sample_id"), ("time", "time_id")):
            np.testing.assert_array_equal(getattr(row, mine), getattr(wanted, theirs)[0], mine)
        np.testing.assert_array_equal(row.variate, wanted.variate_id[0])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"target": np.zeros((2, 5))}, r"target has shape \(2, 5\); .* \[1, 5\]"),
            ({"target": np.zeros((1, 0))}, r"target has shape"),
            ({"target": np.full((1, 5), np.nan)}, "no value"),
            ({"target": np.array([[1.0, np.inf]])}, "infinite or too large"),
            ({"known_ahead": np.zeros((1, 15))}, "known_ahead has shape"),
        ],
    )
    def test_unfit_series(self, change, words):
        with pytest.raises(ValueError, match=words):
            Series(**{"target": np.zeros((1, 5)), **change}).check(SIZES)

    @pytest.mark.parametrize(
        "change", [{"horizon": 0}, {"batch": 0}, {"width": 3}, {"past_only": -1}]
    )
    def test_unfit_sizes(self, change):
        with pytest.raises(ValueError, match="must be"):
            replace(SIZES, **change)


def _window(one: Series, sizes: ForecastSizes) -> Window:
    """The series as the model's packing takes it: filled and cut."""
    fill = causal_mean if sizes.targets == 1 else zeros
    filled = np.stack([fill(row) for row in one.target])
    length, missing = one.target.shape[1], max(sizes.context - one.target.shape[1], 0)

    def past(values: np.ndarray) -> np.ndarray:
        values = values[:, :length][:, -sizes.context :]
        return np.pad(values, ((0, 0), (missing, 0)))

    def steps_first(values: np.ndarray) -> np.ndarray:
        return values.T[None]

    def ahead(values: np.ndarray) -> np.ndarray:
        return steps_first(np.concatenate([past(values), values[:, length:]], axis=1))

    covariates = {}
    if one.known_ahead is not None and one.past_only is not None:
        covariates = {
            "ahead": ahead(zeros(one.known_ahead)),
            "ahead_observed": ahead(~np.isnan(one.known_ahead)),
            "past_only": steps_first(past(zeros(one.past_only))),
            "past_only_observed": steps_first(past(~np.isnan(one.past_only))),
        }
    return Window(
        target=steps_first(past(filled)),
        observed=steps_first(past(~np.isnan(one.target))),
        pad=(np.arange(sizes.context) < missing)[None],
        **covariates,
    )


class TestDistributions:
    @pytest.mark.parametrize(
        "config",
        [
            *(DistributionConfig(components=(kind,), mixture=False) for kind in MODEL_KINDS),
            DistributionConfig(),
            DistributionConfig(components=tuple(MODEL_KINDS), fixed_scales=(0.5, 0.1)),
        ],
        ids=lambda config: "+".join(config.components),
    )
    def test_draws_are_those_of_the_model(self, config):
        """Parameters by number, draws by quantiles: the runtime's against the model's."""
        own = Mixture(
            components=config.components, fixed_scales=config.fixed_scales, mixture=config.mixture
        )
        head = np.random.default_rng(1).normal(0, 0.7, (2, own.width * 3)).astype(np.float32)
        model = _model_distribution(config, head)
        _, params = own.parameters(head)
        for j, kind in config.kinds():
            for arg in kind.maps:
                wanted = model.params[config.arg_name(j, arg)]
                np.testing.assert_allclose(params[j][arg], wanted, rtol=1e-5, atol=1e-6)
        count, levels = 20_000, (0.1, 0.5, 0.9)
        rng = np.random.default_rng(2)
        drawn = own.draw(np.broadcast_to(head, (count, *head.shape)), 2.0, 3.0, rng)
        wanted = np.asarray(model.quantiles(jax.random.key(0), levels, count))
        found = np.quantile(drawn, levels, axis=0)
        # the share of draws below the model's quantile is the level, where it is no atom
        below, upto = (
            np.stack([op(drawn, q).mean(0) for q in wanted]) for op in (np.less, np.less_equal)
        )
        level = np.array(levels)[:, None, None]
        assert (below < level + 0.03).all()
        assert (upto > level - 0.03).all()
        assert np.isfinite(found).all()

    def test_all_kinds_of_the_model(self):
        assert KINDS.keys() == MODEL_KINDS.keys()

    def test_extreme_parameters_stay_finite(self):
        mixture = Mixture(components=("negative_binomial", "log_normal"))
        head = np.full((4, mixture.width * 2), 200.0)
        drawn = mixture.draw(head, 0.0, 1.0, np.random.default_rng(0))
        assert np.isfinite(drawn.astype(np.float32)).all()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"components": ("cauchy",)},
            {"components": ()},
            {"components": ("normal", "laplace"), "mixture": False},
            {"components": ("normal_fixed_scale",)},
        ],
    )
    def test_unfit(self, wrong):
        with pytest.raises(ValueError, match=r"must be one or more|needs one for each"):
            Mixture(**wrong)


def _model_distribution(config: DistributionConfig, head: np.ndarray) -> Distribution:
    cells = head.shape[-1] // sum(config.args.values())
    parts = jnp.split(head, np.cumsum([n * cells for n in config.args.values()])[:-1], axis=-1)
    raw = {
        name: jnp.swapaxes(part.reshape(*part.shape[:-1], n, cells), -1, -2)
        for (name, n), part in zip(config.args.items(), parts, strict=True)
    }
    params = config.constrain(raw)
    return Distribution(
        config=config, params=params, loc=jnp.full((1, 1), 2.0), scale=jnp.full((1, 1), 3.0)
    )


class Counts:
    """Says that the next patch is one more than the token's; keeps what it was given."""

    def __init__(self):
        self.seen = []

    def reset(self):
        pass

    def run(self, inputs):
        self.seen.append({name: np.array(array) for name, array in inputs.items()})
        rows = np.arange(len(inputs["target"]))[:, None]
        head = inputs["target"][rows, inputs["read"]] + 1
        tokens = inputs["target"].shape[:2]
        return [head, np.zeros((*tokens, 1)), np.ones((*tokens, 1))]


def forecaster(**options) -> tuple[Forecaster, Counts]:
    counts = Counts()
    card = Card(sizes=replace(SIZES, **options), distribution=MIXTURE, scaling=True)
    return Forecaster(counts, card), counts


def ramp(start: float, targets: int = 1) -> Series:
    """Patches of 0, 10, start: each has one value."""
    return Series(target=np.repeat([[0.0, 10.0, start]], 4, axis=1) + np.arange(targets)[:, None])


class TestLoop:
    def test_patches_go_on_from_each_other(self):
        own, _ = forecaster(targets=2)
        (found,) = own.forecast([ramp(5, 2)], num_samples=4)
        assert isinstance(found, np.ndarray)
        assert found.shape == (4, 10, 2)
        np.testing.assert_allclose(found[0, :, 0], np.repeat([6, 7, 8], 4)[:10], rtol=1e-5)
        np.testing.assert_allclose(found[3, :, 1], np.repeat([7, 8, 9], 4)[:10], rtol=1e-5)

    def test_what_is_written_counts_and_what_follows_does_not(self):
        own, counts = forecaster()
        own.forecast([ramp(5)], num_samples=1)
        first, second, third = counts.seen
        assert first["target"].shape == (3, 5, 4)
        assert [int(call["read"][0, 0]) for call in counts.seen] == [2, 3, 4]
        assert first["counted"][0].all(axis=1).tolist() == [True] * 3 + [False] * 2
        assert second["counted"][0].all(axis=1).tolist() == [True] * 4 + [False]
        assert third["counted"][0].all(axis=1).tolist() == [True] * 5
        assert second["time"][0].tolist() == [0, 1, 2, 3, 4]

    def test_series_do_not_depend_on_each_other(self):
        rng = Mixture(components=("student_t",), mixture=False)
        many = [ramp(start) for start in range(5)]

        def run(batch, chosen):
            card = Card(sizes=replace(SIZES, batch=batch), distribution=rng, scaling=True)
            program = Counts()
            plain = program.run
            program.run = lambda inputs: _three_heads(plain(inputs))
            return Forecaster(program, card).forecast(chosen, num_samples=3, seed=4)

        together, apart = run(3, many), run(7, many)
        np.testing.assert_array_equal(together, apart)
        np.testing.assert_array_equal(run(3, many[:2]), together[:2])

    def test_a_bad_series_loses_only_itself(self):
        own, _ = forecaster()
        heard = []
        bad = Series(target=np.full((1, 12), np.nan))
        found = own.forecast([ramp(1), bad, ramp(2), bad], num_samples=2, progress=heard.append)
        assert [isinstance(one, ValueError) for one in found] == [False, True, False, True]
        assert heard == [3, 4]
        assert own.forecast([], num_samples=2) == []
        with pytest.raises(ValueError, match="num_samples is 0"):
            own.forecast([ramp(1)], num_samples=0)


def _three_heads(results):
    head, *standard = results
    return [np.concatenate([head, head, head], axis=-1), *standard]


class TestFiles:
    def test_csv(self, tmp_path):
        place = tmp_path / "s.csv"
        place.write_text("date,a,b\n2020-01-01,1,\n2020-01-02,NaN,4.5\n")
        found = read_series(place, targets=1, covariates=False)
        np.testing.assert_array_equal(found["a"].target, [[1, np.nan]])
        np.testing.assert_array_equal(found["b"].target, [[np.nan, 4.5]])
        (both,) = read_series(place, targets=2, covariates=False).values()
        assert both.target.shape == (2, 2)

    def test_npz(self, tmp_path):
        place = tmp_path / "s.npz"
        np.savez(place, target=np.zeros((3, 1, 7)), known_ahead=np.ones((3, 2, 17)))
        found = read_series(place, targets=1, covariates=False)
        assert list(found) == ["0", "1", "2"]
        assert found["1"].known_ahead is not None
        assert found["1"].known_ahead.shape == (2, 17)
        np.savez(place, target=np.zeros(7))
        assert read_series(place, targets=1, covariates=False)["0"].target.shape == (1, 7)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a,b\n", "has 0 rows"),
            ("", "cannot be read as CSV"),
            ("a,b\n1,2\n3\n", "1 of another length"),
            ("a,a\n1,2\n", "a name of its own"),
            ("a,b\n1,2\n3,x\n", "column 'b' .* holds 'x'"),
            ("day\nmonday\n", "no column of numbers"),
        ],
    )
    def test_unreadable_csv(self, tmp_path, text, words):
        place = tmp_path / "s.csv"
        place.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_series(place, targets=1, covariates=False)

    def test_unreadable_npz(self, tmp_path):
        place = tmp_path / "s.npz"
        place.write_bytes(b"no zip")
        with pytest.raises(ValueError, match="cannot be read"):
            read_series(place, targets=1, covariates=False)
        np.savez(place, values=np.zeros(3))
        with pytest.raises(ValueError, match="must hold target"):
            read_series(place, targets=1, covariates=False)
        np.savez(place, target=np.zeros((3, 1, 7)), past_only=np.zeros((2, 1, 7)))
        with pytest.raises(ValueError, match="different numbers of series"):
            read_series(place, targets=1, covariates=False)

    def test_forecasts_as_csv_and_npz(self, tmp_path):
        samples = {"a": np.arange(24.0).reshape(4, 3, 2), "b": np.zeros((4, 3, 2))}
        write_forecasts(tmp_path / "f.csv", samples)
        lines = (tmp_path / "f.csv").read_text().splitlines()
        assert lines[0].startswith("series,target,step,mean,0.1,")
        assert lines[1].split(",")[:4] == ["a", "0", "1", "9"]
        assert len(lines) == 1 + 2 * 3 * 2
        write_forecasts(tmp_path / "f.npz", samples)
        with np.load(tmp_path / "f.npz") as file:
            assert file["samples"].shape == (2, 4, 3, 2)
            assert file["quantiles"].shape == (len(LEVELS), 2, 3, 2)
            assert file["series"].tolist() == ["a", "b"]

    def test_card(self, tmp_path):
        card = Card(sizes=SIZES, distribution=MIXTURE, scaling=False)
        place = tmp_path / "forecaster.json"
        place.write_text(json.dumps(card.to_json()))
        assert read_card(tmp_path) == card
        for text, words in (
            ("{", "cannot be read"),
            ("[]", "schema 2"),
            ('{"schema": 2, "kind": "moirai_moe"}', "not desc"),
            ('{"schema": 2, "kind": "mole"}', "kind is 'mole'"),
        ):
            place.write_text(text)
            with pytest.raises(ValueError, match=words):
                read_card(tmp_path)
