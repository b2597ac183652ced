"""Folders that cannot be loaded: the error says what, where and what to do."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moejax.interop.lm import load_lm
from moejax.interop.lm.families import read_config

MODELS = Path(__file__).parents[2] / "fixtures" / "moe_lm"


def fields_of(name: str) -> dict:
    return json.loads((MODELS / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"model_type": "gpt2"}, "model_type is 'gpt2'.*known are llama, mixtral"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu', which is not implemented"),
        ("llama", {"hidden_size": "48"}, "hidden_size is '48'; it must be a whole number"),
        ("llama", {"vocab_size": None}, "vocab_size is None"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'; it must be a number"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ("llama", {"dtype": "int8"}, "dtype is 'int8'"),
        ("llama", {"rope_parameters": {"rope_type": "axial"}}, "rope_type is 'axial'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'linear' needs a factor"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "one set of them for all layers"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k is 9"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
        (
            "qwen2_moe",
            {"use_sliding_window": True, "sliding_window": 4, "layer_types": []},
            "layer_types",
        ),
    ],
)
def test_configs(name, change, message):
    with pytest.raises(ValueError, match=message):
        read_config(fields_of(name) | change)


@pytest.fixture
def folder(tmp_path):
    """A copy of the llama folder: a function that writes it with changed fields and tensors."""
    fields, tensors = fields_of("llama"), load_file(MODELS / "llama" / "model.safetensors")

    def write(changes=None, fields_changes=None, name="model.safetensors"):
        kept = {
            key: value for key, value in (tensors | (changes or {})).items() if value is not None
        }
        (tmp_path / "config.json").write_text(json.dumps(fields | (fields_changes or {})))
        save_file(kept, tmp_path / name)
        return tmp_path

    return write


def test_tensors_that_do_not_fit_are_listed(folder):
    changed = {
        "model.norm.weight": None,
        "model.layers.1.mlp.up_proj.weight": np.zeros((3, 48), np.float32),
        "model.layers.0.self_attn.q_proj.bias": np.zeros(48, np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.zeros((48, 48), np.int8),
    }
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_lm(folder(changed))
    for part in (
        "missing: model.norm.weight;",
        "unknown: model.layers.0.self_attn.q_proj.bias;",
        "model.layers.1.mlp.up_proj.weight has (3, 48), the config needs (96, 48)",
        "model.layers.0.self_attn.q_proj.weight is I8",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(folder, value):
    name = "model.layers.2.mlp.down_proj.weight"
    broken = load_file(MODELS / "llama" / "model.safetensors")[name]
    broken[5, 7] = value
    with pytest.raises(ValueError, match=f"NaN or infinite: {name}$"):
        load_lm(folder({name: broken}))


def test_truncated_file(folder):
    path = folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or damaged"):
        load_lm(path.parent)


def test_folders_without_weights(folder):
    path = folder()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: pickles.*safe_serialization=True"):
        load_lm(path)
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load_lm(path)
    (path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"needs a config\.json"):
        load_lm(path)


def test_index_that_names_a_missing_file(folder):
    path = folder(name="model-00001-of-00002.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors"):
        load_lm(path)
    (path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="is no index"):
        load_lm(path)


def test_float8_without_scales_and_other_quantisation(folder):
    import ml_dtypes

    name = "model.layers.0.mlp.up_proj.weight"
    coarse = np.ones((96, 48), ml_dtypes.float8_e4m3fn)
    with pytest.raises(ValueError, match=rf"missing: {name}_scale_inv"):
        load_lm(folder({name: coarse}))
    with pytest.raises(ValueError, match="quant_method 'gptq'"):
        load_lm(folder(fields_changes={"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match="dtype is int8"):
        load_lm(folder(), dtype="int8")
