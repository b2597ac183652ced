"""Overrides by dotted name, and JSON both ways."""

import json

import pytest

from train import recipes
from train.config import (
    Config,
    coerce,
    config_hash,
    differences,
    from_json,
    keys,
    override,
    to_json,
)


@pytest.fixture
def config() -> Config:
    return recipes.build("mole_etth1")


def test_overrides_take_the_type_of_their_field(config):
    changed = override(
        config,
        [
            "optim.learning_rate=5e-3",
            "loop.epochs=7",
            "data.interpolate=yes",
            "data.columns=HUFL, OT",
            "model.base=rlinear",
            "model.top_k=none",
        ],
    )
    assert changed.optim.learning_rate == 5e-3
    assert changed.loop.epochs == 7
    assert changed.data.interpolate is True
    assert changed.data.columns == ("HUFL", "OT")
    assert (changed.model.base, changed.model.top_k) == ("rlinear", None)
    assert override(config, []) == config


def test_overrides_that_only_make_sense_together_are_applied_together(config):
    settings = ["model.router=none", "model.head_dropout=0", "model.num_experts=1"]
    assert override(config, settings).model.num_experts == 1
    with pytest.raises(ValueError, match="num_experts is 4"):
        override(config, settings[:2])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.learning_rat=1", "Did you mean 'optim.learning_rate'"),
        ("optim.lr=1", "Did you mean 'optim.learning_rate'"),
        ("epochs=3", "Did you mean 'loop.epochs'"),
        ("recipe=other", "unknown config key 'recipe'"),
        ("loop.epochs", "has no '='"),
        ("loop.epochs=many", "loop.epochs is 'many', which is not a whole number"),
        ("loop.epochs=1.5", "not a whole number"),
        ("loop.epochs=0", "loop.epochs is 0; it must be >= 1"),
        ("optim.learning_rate=nan", "it must be above 0"),
        ("data.interpolate=perhaps", "not true or false"),
        ("data.mode=SM", "data.mode is 'SM'; allowed: 'M', 'S', 'MS'"),
        ("model.base=rlinar", "Did you mean 'rlinear'"),
        ("model.kernel_size=24", "needs an odd one"),
        ("optim.weight_decay=0.1", "use --set optim.name=adamw"),
    ],
)
def test_bad_overrides(config, setting, message):
    with pytest.raises(ValueError, match=message):
        override(config, [setting])


def test_unknown_recipe_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'mole_weather'"):
        recipes.build("mole_wether")


def test_json_round_trip_keeps_types(config):
    changed = override(config, ["data.columns=a,b", "model.router=stats", "model.head_dropout=0"])
    again = from_json(to_json(changed), config)
    assert again == changed
    assert config_hash(again) == config_hash(changed) != config_hash(config)


def test_json_of_another_version(config):
    saved = json.loads(to_json(config))
    del saved["loop"]["unroll"]
    assert from_json(json.dumps(saved), config) == config
    saved["loop"]["gone"] = 1
    with pytest.raises(ValueError, match=r"unknown config key 'loop.gone'"):
        from_json(json.dumps(saved), config)
    with pytest.raises(ValueError, match="unknown sections"):
        from_json('{"recipe": "mole_etth1", "extra": {}}', config)


def test_differences_name_the_keys(config):
    other = override(config, ["loop.seed=5"])
    assert differences(config, other) == ["loop.seed: 0, not 5"]


def test_every_value_has_a_key(config):
    names = keys(config)
    assert len(names) == len(set(names))
    assert {"recipe", "model.base", "data.csv", "optim.name", "loop.epochs"} <= set(names)


def test_coerce_refuses_a_float_for_an_int():
    assert coerce(3, int, "x") == 3
    with pytest.raises(ValueError, match="not a whole number"):
        coerce(3.5, int, "x")
    assert coerce("[1, 2]", tuple[int, ...], "x") == (1, 2)
