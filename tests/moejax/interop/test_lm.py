"""Published language models to our config and variables and back, in every layout and dialect."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from moejax.interop.lm import load_lm, save_lm
from moejax.interop.lm.families import read_config
from moejax.interop.lm.fit import variable_shapes
from moejax.interop.lm.save import published_tensors

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDERS = sorted(
    path.parent
    for name in ("moe_lm", "lm_options")
    for path in (FIXTURES / name).glob("*/config.json")
)
MIXTRAL, DEEPSEEK = FIXTURES / "moe_lm" / "mixtral", FIXTURES / "moe_lm" / "deepseek_v3"


def fields_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def write(folder: Path, fields: dict, tensors: dict, name: str = "model.safetensors") -> Path:
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / name)
    return folder


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.fixture(scope="module")
def mixtral():
    """Fields, tensors, and what they are in our terms."""
    return fields_of(MIXTRAL), load_file(MIXTRAL / "model.safetensors"), load_lm(MIXTRAL)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_round_trip_in_shards(folder, tmp_path):
    config, variables = load_lm(folder)
    save_lm(config, variables, tmp_path, shard_bytes=100_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    again, same = load_lm(tmp_path)
    assert again == config
    assert_same(same, variables)
    save_lm(config, variables, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(written, load_file(folder / "model.safetensors"))
    assert fields_of(tmp_path)["model_type"] == fields_of(folder)["model_type"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_older_dialect(folder):
    """Base of RoPE at the top, its kind under `type`, torch_dtype, num_experts, nulls left out."""
    fields = fields_of(folder)
    config = read_config(fields)
    rope = fields.pop("rope_parameters")
    fields["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    fields["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    fields["torch_dtype"] = fields.pop("dtype")
    if "num_local_experts" in fields and fields["model_type"] != "mixtral":
        fields["num_experts"] = fields.pop("num_local_experts")
    kept = ("q_lora_rank",)  # where null says something
    old = {name: value for name, value in fields.items() if value is not None or name in kept}
    assert read_config(old) == config
    del old["model_type"]
    assert read_config(old) == config  # the class tells


def test_experts_and_their_halves_are_stacked(mixtral):
    _, tensors, (config, variables) = mixtral
    assert config.moe.routing.num_experts == 8
    layer = variables["params"]["layers_1"]["moe"]
    prefix = "model.layers.1.block_sparse_moe."
    np.testing.assert_array_equal(layer["router_kernel"], tensors[f"{prefix}gate.weight"].T)
    for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        recorded = tensors[f"{prefix}experts.5.{theirs}.weight"]
        np.testing.assert_array_equal(layer["experts"][ours][5], recorded.T)


@pytest.mark.parametrize("folder", [MIXTRAL, DEEPSEEK], ids=lambda path: path.name)
def test_fused_experts_are_the_same(folder, tmp_path):
    config, variables = load_lm(folder)
    flat = flatten_dict(variables, sep="/")
    fused = dict(published_tensors(config, folder.name, flat, fused=True))
    moe = config.moe
    shape = moe.routing.num_experts, 2 * moe.d_ff, config.d_model
    assert fused["model.layers.1.mlp.experts.gate_up_proj"].shape == shape
    write(tmp_path, fields_of(folder), fused)
    assert_same(load_lm(tmp_path)[1], variables)


@pytest.mark.parametrize(
    ("stored", "wanted", "kept"),
    [
        (ml_dtypes.bfloat16, None, "bfloat16"),
        (np.float16, None, "float16"),
        (np.float64, None, "float32"),
        (np.float32, "bfloat16", "bfloat16"),
        (ml_dtypes.bfloat16, jnp.float32, "float32"),
    ],
)
def test_dtypes(mixtral, tmp_path, stored, wanted, kept):
    fields, tensors, _ = mixtral
    write(tmp_path, fields, {name: array.astype(stored) for name, array in tensors.items()})
    config, variables = load_lm(tmp_path, dtype=wanted)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {kept}
    assert wanted is None or config.dtype == jnp.dtype(wanted).name
    embedding = tensors["model.embed_tokens.weight"].astype(stored).astype(kept)
    np.testing.assert_array_equal(variables["params"]["embedding"], embedding)


def test_float8_weights_are_scaled_by_block(mixtral, tmp_path):
    fields, tensors, _ = mixtral
    name, block = "model.layers.0.block_sparse_moe.experts.2.w1.weight", (16, 32)
    rng = np.random.default_rng(0)
    coarse = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.5, 2, (3, 2)).astype(np.float32)  # of [40, 48]
    fields = fields | {"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}
    write(tmp_path, fields, tensors | {name: coarse, f"{name}_scale_inv": scale})
    wide = np.repeat(np.repeat(scale, 16, axis=0), 32, axis=1)[:40, :48]
    _, variables = load_lm(tmp_path, dtype="float32")
    gate = variables["params"]["layers_0"]["moe"]["experts"]["gate"]
    np.testing.assert_array_equal(gate[2], (coarse.astype(np.float32) * wide).T)
    assert load_lm(tmp_path)[1]["params"]["embedding"].dtype == jnp.float32  # as stored


def test_progress_and_placement(mixtral):
    _, tensors, (_, variables) = mixtral
    seen = []
    mesh = jax.make_mesh((1,), ("expert",))

    def place(path, shape):
        axes = ("expert",) if "/experts/" in path else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    total = sum(array.nbytes for array in tensors.values())
    _, placed = load_lm(MIXTRAL, sharding=place, progress=lambda *now: seen.append(now))
    assert_same(placed, variables)
    assert placed["params"]["layers_0"]["moe"]["experts"]["up"].sharding.spec[0] == "expert"
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_extra_layers_and_tables_are_left_out(tmp_path):
    tensors = load_file(DEEPSEEK / "model.safetensors")
    extra = {"eh_proj.weight": (48, 96), "enorm.weight": (48,), "mlp.gate.weight": (16, 48)}
    tensors |= {f"model.layers.3.{name}": np.ones(shape, "f4") for name, shape in extra.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write(tmp_path, fields_of(DEEPSEEK), tensors)
    assert_same(load_lm(tmp_path)[1], load_lm(DEEPSEEK)[1])
    del tensors["model.layers.3.eh_proj.weight"]
    write(tmp_path, fields_of(DEEPSEEK), tensors)
    with pytest.raises(ValueError, match=r"unknown: model\.layers\.3\.enorm\.weight"):
        load_lm(tmp_path)
    write(tmp_path, fields_of(DEEPSEEK) | {"num_nextn_predict_layers": 1}, tensors)
    load_lm(tmp_path)


def test_a_head_that_is_tied_may_be_stored(tmp_path):
    folder = FIXTURES / "moe_lm" / "llama"
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write(tmp_path, fields_of(folder), tensors)
    assert "head" not in load_lm(tmp_path)[1]["params"]
    write(tmp_path, fields_of(folder) | {"tie_word_embeddings": False}, tensors)
    assert load_lm(tmp_path)[1]["params"]["head"].shape == (48, 199)


def test_what_no_published_model_has_is_not_saved(mixtral, tmp_path):
    from dataclasses import replace

    config, variables = mixtral[2]
    with pytest.raises(ValueError, match=r"nearest, mixtral, cannot express block='parallel'"):
        save_lm(replace(config, block="parallel"), variables, tmp_path)
    shapes = variable_shapes(config)
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    flat["params/head"] = np.zeros((3, 4), np.float32)
    del flat["params/final_norm/scale"]
    with pytest.raises(ValueError, match=r"final_norm/scale is missing, params/head has shape"):
        save_lm(config, unflatten_dict(flat, sep="/"), tmp_path)
    assert not list(tmp_path.iterdir())
