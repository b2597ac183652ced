"""Every recipe builds, survives a round trip, and its docstring holds the command that runs it."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from moejax.interop.tokenizer import ByteTokenizer
from train import recipes
from train.config import config_hash, from_json, to_json
from train.recipes import moe_lm, mole


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipe_builds(name):
    config = recipes.build(name)
    assert config.recipe == name
    assert config_hash(from_json(to_json(config), config)) == config_hash(config)
    text = inspect.getdoc(recipes.RECIPES[name]) or ""
    assert f"moejax train {name}" in text, f"the docstring of {name} lacks its command"


def names(module):
    return [recipe.__name__ for recipe in module.RECIPES]


@pytest.mark.parametrize("name", names(mole))
def test_forecaster_has_the_sizes_of_its_recipe(name):
    config = recipes.build(name)
    size = config.model
    model = mole.make_model(config)
    x = jax.ShapeDtypeStruct((2, size.seq_len, size.num_channels), jnp.float32)
    mark = jax.ShapeDtypeStruct((2, size.num_time_features), jnp.float32)
    forecast, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, mark)
    assert forecast.y.shape == (2, size.pred_len, size.num_channels)


@pytest.mark.parametrize("name", names(moe_lm))
def test_language_model_has_the_sizes_of_its_recipe(name):
    config = recipes.build(name)
    model = moe_lm.make_model(config)
    ids = jax.ShapeDtypeStruct((2, config.data.seq_len), jnp.int32)
    output, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), ids)
    assert output.logits.shape == (*ids.shape, ByteTokenizer.vocab_size)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    expected = {"lm_debug": 165_056, "lm_small_dense": 2_756_352}
    assert count == expected.get(name, 10_632_960)
