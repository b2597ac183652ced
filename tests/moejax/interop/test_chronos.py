"""Chronos checkpoints: round trips, other dtypes, warm starts, folders that do not fit."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moejax.forecasting.chronos.pipeline import ChronosMoEPipeline, ChronosPipeline
from moejax.interop.chronos import load_chronos, load_t5, save_chronos
from moejax.interop.chronos_start import warm_start
from moejax.models.chronos_config import ChronosConfig

FIXTURES = Path(__file__).parents[2] / "fixtures" / "chronos"
MODELS = sorted(path.parent.name for path in FIXTURES.glob("*/model.safetensors"))
STARTS = {
    "heads": {},
    "encoders": {"moe_architecture": "expert_only", "expert_dispatch": "indexed"},
    "tails": {"shared_layers": 1, "num_active_experts": 3},
    "all": {"moe_architecture": "expert_only", "shared_layers": 1},
}


def copy(name: str, folder: Path, change_fields=None, change_tensors=None) -> Path:
    """A model's folder with its config or weights changed."""
    shutil.copy(FIXTURES / name / "config.json", folder / "config.json")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(change_fields(fields) if change_fields else fields)
    )
    tensors = load_file(FIXTURES / name / "model.safetensors")
    save_file(change_tensors(tensors) if change_tensors else tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_saving_loses_nothing(name, tmp_path):
    config, variables = load_chronos(FIXTURES / name)
    save_chronos(config, variables, tmp_path)
    again = load_chronos(tmp_path)
    assert again[0] == config
    jax.tree.map(np.testing.assert_array_equal, again[1], variables)
    published = load_file(FIXTURES / name / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == published.keys()
    assert all((saved[key] == published[key]).all() for key in saved)


def test_bfloat16_files_and_copies_of_the_table_are_read(tmp_path):
    def change(tensors):
        tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
        copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
        return tensors | dict.fromkeys(copies, tensors["shared.weight"])

    config, variables = load_chronos(copy("t5_relu", tmp_path, None, change), dtype="bfloat16")
    assert config.t5.dtype == "bfloat16"
    assert variables["params"]["shared"].dtype == jnp.float32
    forecast = ChronosPipeline(config, variables).predict(np.arange(30.0), 2, num_samples=3)
    assert forecast.shape == (1, 3, 2)
    assert np.isfinite(forecast).all()


def test_a_t5_becomes_a_chronos_model(tmp_path):
    folder = copy("t5_relu", tmp_path, lambda f: {k: v for k, v in f.items() if "chronos" not in k})
    with pytest.raises(ValueError, match="no chronos_config"):
        load_chronos(folder)
    chronos = ChronosConfig(n_tokens=256, context_length=48, prediction_length=12)
    config, _ = load_chronos(folder, chronos=chronos)
    assert config.chronos == chronos
    assert load_t5(folder)[0] == config.t5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_ff": 40}, r"wi.weight has \(96, 48\), the config needs \(40, 48\)"),
        ({"num_layers": 3}, "missing: encoder.block.2"),
        ({"num_layers": 1}, "unknown: encoder.block.1"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'"),
        ({"d_kv": None}, "lacks d_kv"),
    ],
)
def test_folders_that_do_not_fit(fields, message, tmp_path):
    def change(found):
        return {k: v for k, v in (found | fields).items() if v is not None}

    with pytest.raises(ValueError, match=message):
        load_chronos(copy("t5_relu", tmp_path, change))


@pytest.mark.parametrize(
    ("chronos", "message"),
    [
        ({"tokenizer_class": "Pickle"}, "tokenizer_class is 'Pickle'"),
        ({"n_tokens": 999}, "vocabulary of 256"),
        ({"model_type": "causal"}, "must be 'seq2seq'"),
    ],
)
def test_chronos_configs_that_do_not_fit(chronos, message, tmp_path):
    def change(found):
        return found | {"chronos_config": found["chronos_config"] | chronos}

    with pytest.raises(ValueError, match=message):
        load_chronos(copy("t5_relu", tmp_path, change))


def test_weights_must_be_finite(tmp_path):
    def change(tensors):
        tensors["shared.weight"][3, 4] = np.nan
        return tensors

    with pytest.raises(ValueError, match=r"NaN or infinite: shared\.weight"):
        load_chronos(copy("t5_relu", tmp_path, None, change))


@pytest.mark.parametrize("name", STARTS)
def test_a_mixture_starts_as_its_base(name):
    base = load_chronos(FIXTURES / "t5_gated_untied")
    mixture = warm_start(*base, num_experts=4, router_hidden_dim=16, **STARTS[name])
    context = load_file(FIXTURES / "t5_gated_untied" / "io.safetensors")["context"]
    expected = ChronosPipeline(*base).predict(context, 4, num_samples=2)
    found = ChronosMoEPipeline(*mixture).predict(context, 4, num_samples=2)
    np.testing.assert_array_equal(found, expected)


def test_warm_starts_that_cannot_equal_the_base():
    base = load_chronos(FIXTURES / "t5_relu")
    with pytest.raises(ValueError, match="head_mode 'decoder' and no expert_norm"):
        warm_start(*base, expert_norm=True)
    with pytest.raises(ValueError, match="a mixture already"):
        warm_start(*load_chronos(FIXTURES / "moe_design_expert_only"))
