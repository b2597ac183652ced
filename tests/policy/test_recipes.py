"""Every recipe builds, survives a round trip, and its docstring holds the command that runs it."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from train import recipes
from train.config import config_hash, from_json, to_json


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipe_builds(name):
    config = recipes.build(name)
    assert config.recipe == name
    assert config_hash(from_json(to_json(config), config)) == config_hash(config)
    text = inspect.getdoc(recipes.RECIPES[name]) or ""
    assert f"moejax train {name}" in text, f"the docstring of {name} lacks its command"


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_model_has_the_sizes_of_its_recipe(name):
    config = recipes.build(name)
    size = config.model
    model = recipes.system(name).make_model(config)
    x = jax.ShapeDtypeStruct((2, size.seq_len, size.num_channels), jnp.float32)
    mark = jax.ShapeDtypeStruct((2, size.num_time_features), jnp.float32)
    forecast, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), x, mark)
    assert forecast.y.shape == (2, size.pred_len, size.num_channels)
