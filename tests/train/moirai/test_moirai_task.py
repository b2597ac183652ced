"""Training MOIRAI-MoE: what is scored, that nothing leaks, exact resume, stages, starts."""

import functools
import io
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from moejax.distributions import Distribution, DistributionConfig
from moejax.interop.moirai import save_moirai_moe
from moejax.models.moirai_moe import MoiraiMoE
from train.config import LoopConfig, override
from train.loop import train
from train.moirai_centroids import kmeans, second_stage
from train.moirai_data.rows import cut
from train.moirai_start import load_model
from train.moirai_task import MoiraiTraining, make_task, mean_nll, next_patch_nll
from train.optim import OptimConfig, make_optimizer
from train.recipes import build, moirai_moe
from train.step import Trainer, init_state
from train.workdir import Workdir

pytestmark = pytest.mark.usefixtures("compile_once")
OPTIM = functools.partial(make_optimizer, OptimConfig(learning_rate=3e-3, clip_norm=1.0))
LOOP = LoopConfig(
    epochs=2, steps_per_epoch=6, steps_per_call=3, batch_size=4, eval_batch_size=8, patience=9
)


def run(task, folder, loop=LOOP):
    workdir, console = Workdir(folder), Console(file=io.StringIO())
    with workdir.held():
        return train(task, OPTIM, loop, workdir, {}, console)


def stopped(task, folder, monkeypatch, calls):
    """The same run, killed after some calls."""
    original, made = Trainer.run, 0

    def stop(self, state, indices):
        nonlocal made
        made += 1
        if made > calls:
            raise KeyboardInterrupt
        return original(self, state, indices)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            run(task, folder, replace(LOOP, checkpoint_seconds=0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_config, series):
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(make_task(model_config, MoiraiTraining(), series), folder)


@pytest.fixture(scope="module")
def batch(series):
    return cut(jax.device_put(series.arrays()), jnp.arange(6), series.patch_length)


def normal(tokens, loc=0.5, scale=2.0):
    """The standard normal, moved and scaled, as what every token says of its next patch."""
    config = DistributionConfig(components=("normal",), mixture=False)
    shape = tokens.target.shape
    one = jnp.ones((*shape[:2], 1))
    params = {"loc": jnp.zeros(shape), "scale": jnp.ones(shape)}
    return Distribution(config=config, params=params, loc=loc * one, scale=scale * one)


def by_hand(tokens):
    """{(row, token): standardised next values that are scored} under `normal`."""
    ids = np.stack([tokens.sample_id, tokens.variate_id, tokens.time_id], axis=-1)
    found = {}
    for row in range(len(ids)):
        where = {tuple(one): token for token, one in enumerate(ids[row].tolist()) if one[0]}
        for (sample, variate, time), token in where.items():
            following = where.get((sample, variate, time + 1))
            if following is not None and tokens.prediction_mask[row, following]:
                seen = tokens.observed_mask[row, following]
                found[row, token] = (tokens.target[row, following][seen] - 0.5) / 2
    return found


def test_each_token_is_scored_on_the_next_patch_of_its_series(batch):
    tokens = jax.device_get(batch)
    nll, cells = next_patch_nll(normal(batch), batch)
    wanted = by_hand(tokens)
    assert len(wanted) > 20
    assert len(np.unique(tokens.variate_id)) > 1
    for row, token in np.ndindex(nll.shape[:2]):
        z = wanted.get((row, token), np.zeros(0))
        assert cells[row, token].sum() == len(z)
        own = np.sum(0.5 * z**2 + 0.5 * np.log(2 * np.pi))
        np.testing.assert_allclose(nll[row, token].sum(), own, rtol=2e-4, atol=1e-3)


def test_means_over_groups_and_over_cells(batch):
    tokens = jax.device_get(batch)
    nll, cells = next_patch_nll(normal(batch), batch)
    groups = {}
    for (row, token), z in by_hand(tokens).items():
        key = row, tokens.sample_id[row, token], tokens.variate_id[row, token]
        groups.setdefault(key, []).extend(0.5 * z**2 + 0.5 * np.log(2 * np.pi))
    means = [np.mean(one) for one in groups.values() if one]
    np.testing.assert_allclose(mean_nll(nll, cells, batch, "groups"), np.mean(means), rtol=1e-3)
    every = np.concatenate([one for one in groups.values() if one])
    np.testing.assert_allclose(mean_nll(nll, cells, batch, "cells"), every.mean(), rtol=1e-3)


def test_what_is_predicted_moves_neither_scaler_nor_earlier_scores(batch, model_config):
    model = MoiraiMoE(model_config)
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    late = jnp.asarray(batch.prediction_mask) & (
        jnp.asarray(batch.time_id) == jnp.max(jnp.asarray(batch.time_id), axis=1, keepdims=True)
    )
    moved = replace(batch, target=batch.target + 50.0 * late[..., None])
    apply = jax.jit(model.apply)
    before, after = apply(variables, batch), apply(variables, moved)
    np.testing.assert_array_equal(before.loc, after.loc)
    np.testing.assert_array_equal(before.scale, after.scale)
    nll, _ = next_patch_nll(before, batch)
    other, _ = next_patch_nll(after, moved)
    scored_elsewhere = ~np.roll(np.asarray(late), -1, axis=1) & ~np.asarray(late)
    np.testing.assert_allclose(nll[scored_elsewhere], other[scored_elsewhere], rtol=1e-5)
    assert np.abs(np.asarray(nll - other)).max() > 0.1


def test_it_learns_and_says_who_works(whole):
    folder, result = whole
    lines = Workdir(folder).read_metrics()
    assert lines[1]["val_nll"] < lines[0]["val_nll"]
    assert result.final["val_nll"] == lines[1]["val_nll"]
    load = np.array(lines[1]["expert_load"])
    assert load.shape == (1, 4)
    np.testing.assert_allclose(load.sum(axis=1), 1, atol=1e-3)
    assert lines[1]["dead_experts"] == []


def test_dead_experts_are_named(whole, model_config, series):
    params = whole[1].params
    load = jnp.asarray([[0.5, 0.49, 0.01, 0.0]])
    params = {**params, "training": {**params["training"], "load": load}}
    task = make_task(model_config, MoiraiTraining(), series)
    assert task.report(params)["dead_experts"] == [[0, 2], [0, 3]]


def test_it_continues_to_the_same_bits(whole, tmp_path, monkeypatch, model_config, series):
    task = make_task(model_config, MoiraiTraining(), series)
    for calls in (1, 2):
        stopped(task, tmp_path, monkeypatch, calls)
    again = run(task, tmp_path)
    assert again.final["params_sha256"] == whole[1].final["params_sha256"]


def test_bfloat16_computes_with_weights_in_float32(model_config, series, batch):
    task = make_task(replace(model_config, dtype="bfloat16"), MoiraiTraining(), series)
    state = init_state(task, OPTIM(steps_per_epoch=1, epochs=1), 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params["params"])} == {np.dtype("float32")}
    half, _ = jax.jit(task.loss)(state.params, batch, jax.random.key(0))
    full, _ = jax.jit(make_task(model_config, MoiraiTraining(), series).loss)(
        state.params, batch, jax.random.key(0)
    )
    assert half.dtype == jnp.float32
    assert half != full
    np.testing.assert_allclose(half, full, rtol=0.02)


def test_kmeans_finds_clusters_and_repeats_itself():
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 10, (5, 3))
    points = (centres[np.arange(200) % 5] + 0.1 * rng.normal(size=(200, 3))).astype(np.float32)
    found = kmeans(points, 5, seed=4)
    np.testing.assert_array_equal(found, kmeans(points, 5, seed=4))
    nearest = np.linalg.norm(found[:, None] - centres[None], axis=-1)
    assert nearest.min(axis=0).max() < 0.1
    assert len(np.unique(nearest.argmin(axis=1))) == 5
    with pytest.raises(ValueError, match="fewer than 5 different activations"):
        kmeans(np.repeat(points[:4], 3, axis=0), 5, seed=0)


@pytest.mark.parametrize("routing", ["farthest", "nearest"])
def test_the_second_stage_begins_as_good_as_the_dense_first(
    routing, model_config, dense_config, series, batch
):
    config = replace(model_config, routing=routing, num_experts=6)
    variables = jax.jit(MoiraiMoE(dense_config).init)(jax.random.key(0), batch)
    second = second_stage(config, (dense_config, variables), series, seed=0)
    centroids = second["router_state"]["layers_0"]["moe"]["centroids"]
    assert centroids.shape == (6, 64)
    assert len(np.unique(np.asarray(centroids), axis=0)) == 6
    first = jax.jit(MoiraiMoE(dense_config).apply)(variables, batch)
    begun = jax.jit(MoiraiMoE(config).apply)(second, batch)
    np.testing.assert_allclose(begun.mean(), first.mean(), rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match=r"model.routing is 'learned'"):
        second_stage(model_config, (dense_config, variables), series, 0)
    with pytest.raises(ValueError, match="all but routing"):
        second_stage(replace(config, d_ff=16), (dense_config, variables), series, 0)


def saved(config, series, folder):
    """A model of random weights as a checkpoint's folder, and its variables."""
    tokens = cut(jax.device_put(series.arrays()), jnp.arange(1), series.patch_length)
    variables = jax.jit(MoiraiMoE(config).init)(jax.random.key(5), tokens)
    save_moirai_moe(config, variables, folder)
    return {name: variables[name] for name in ("params", "router_state") if name in variables}


@pytest.mark.parametrize("routing", ["farthest", "learned"])
def test_training_begins_with_a_checkpoint(routing, tmp_path, model_config, series):
    config = replace(model_config, routing=routing)
    variables = saved(config, series, tmp_path / "model")
    task = make_task(
        config, MoiraiTraining(), series, start=lambda: load_model(tmp_path / "model")[1]
    )
    state = init_state(task, OPTIM(steps_per_epoch=1, epochs=1), 0)
    kept = {name: state.params[name] for name in variables}
    jax.tree.map(np.testing.assert_array_equal, kept, variables)


def test_a_run_that_has_begun_needs_its_beginning_no_more(
    tmp_path, monkeypatch, model_config, series
):
    saved(model_config, series, tmp_path / "model")
    start = lambda: load_model(tmp_path / "model")[1]  # noqa: E731
    task = make_task(model_config, MoiraiTraining(), series, start=start)
    stopped(task, tmp_path / "run", monkeypatch, 2)
    (tmp_path / "model").rename(tmp_path / "away")
    assert run(task, tmp_path / "run").final["steps"] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.average=rows"], "training.average is 'rows'"),
        (["training.dead_share=1"], "training.dead_share is 1.0"),
        (["training.start=a", "training.centroids=b"], "both set"),
        (["model.num_experts=1"], "top_k"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        override(build("moirai_pretrain"), settings)


def test_fine_tuning_asks_for_a_model():
    with pytest.raises(ValueError, match=r"training\.start is empty"):
        moirai_moe.load(build("moirai_finetune"))
