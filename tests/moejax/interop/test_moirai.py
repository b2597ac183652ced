"""Checkpoints of MOIRAI-MoE: what is read is written back bit by bit; what is wrong is said."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moejax.distributions import DistributionConfig
from moejax.interop.hub import model_folder
from moejax.interop.moirai import load_moirai_moe, save_moirai_moe
from moejax.interop.moirai_config import read_config, read_distribution, write_config
from moejax.models.moirai_moe import MoiraiMoE, MoiraiMoEConfig, empty_tokens

MODELS = Path(__file__).parents[2] / "fixtures" / "moirai_moe"
FIELDS = json.loads((MODELS / "model_a" / "config.json").read_text())
PREFIX = "uni2ts.distribution."


@pytest.mark.parametrize("name", ["model_a", "model_b", "model_c"])
def test_round_trip_is_exact(name, tmp_path):
    config, variables = load_moirai_moe(MODELS / name)
    save_moirai_moe(config, variables, tmp_path)
    theirs, ours = (load_file(folder / "model.safetensors") for folder in (MODELS / name, tmp_path))
    assert ours.keys() == theirs.keys()
    for tensor, array in theirs.items():
        assert ours[tensor].dtype == array.dtype
        np.testing.assert_array_equal(ours[tensor], array, err_msg=tensor)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        (MODELS / name / "config.json").read_text()
    )


def test_variants_come_back(tmp_path):
    """A learned router and shared experts have names of our own."""
    config = MoiraiMoEConfig(
        d_model=64, d_ff=8, num_layers=1, routing="learned", num_experts=3, num_shared_experts=2
    )
    tokens = empty_tokens(config)
    shapes = jax.eval_shape(MoiraiMoE(config).init, jax.random.key(0), tokens)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda one: rng.normal(size=one.shape).astype(np.float32), shapes)
    save_moirai_moe(config, variables, tmp_path)
    found, back = load_moirai_moe(tmp_path)
    assert found == config
    assert jax.tree.structure(back) == jax.tree.structure(dict(variables))
    jax.tree.map(np.testing.assert_array_equal, back, dict(variables))


def test_trained_centroids_are_written_as_float64(tmp_path):
    config, variables = load_moirai_moe(MODELS / "model_c")
    variables = jax.tree.map(jnp.asarray, variables)  # float32
    save_moirai_moe(config, variables, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["encoder.centroid"]
    assert stored.dtype == np.float64
    np.testing.assert_allclose(
        stored, load_file(MODELS / "model_c" / "model.safetensors")["encoder.centroid"], rtol=1e-7
    )


@pytest.mark.parametrize("module", [True, False])
def test_both_spellings_of_distributions(module):
    def name(path, cls):
        return {"_target_": f"{PREFIX}{path}.{cls}" if module else PREFIX + cls}

    tree = name("mixture", "MixtureOutput") | {
        "components": [
            name("log_normal", "LogNormalOutput"),
            name("normal", "NormalFixedScaleOutput") | {"scale": 0.01},
            name("normal", "NormalOutput"),
            name("laplace", "LaplaceOutput"),
            name("laplace", "LaplaceFixedScaleOutput"),
            name("pareto", "ParetoOutput"),
            name("negative_binomial", "NegativeBinomialOutput"),
        ]
    }
    kinds = ("log_normal", "normal_fixed_scale", "normal", "laplace", "laplace_fixed_scale")
    kinds += ("pareto", "negative_binomial")
    assert read_distribution(tree) == DistributionConfig(
        components=kinds, fixed_scales=(0.01, 1e-3)
    )
    plain = read_distribution(name("student_t", "StudentTOutput"))
    assert plain == DistributionConfig(components=("student_t",), mixture=False)


def test_every_config_is_written_as_it_is_read():
    for distribution in (
        DistributionConfig(),
        DistributionConfig(components=("laplace_fixed_scale",), fixed_scales=(0.2,)),
        DistributionConfig(components=("normal_fixed_scale",), mixture=False),
    ):
        config = MoiraiMoEConfig(
            distribution=distribution, patch_sizes=(8, 64), scaling=False, dropout=0.1, top_k=3
        )
        assert read_config(json.loads(json.dumps(write_config(config)))) == config
    assert "moejax" not in write_config(MoiraiMoEConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "d_model of config.json is None; it must be of type int"),
        ({"d_ff": "4"}, "d_ff of config.json is '4'"),
        ({"scaling": 1}, "scaling of config.json is 1; it must be of type bool"),
        ({"num_layers": True}, "num_layers of config.json is True"),
        ({"patch_sizes": 16}, "patch_sizes of config.json is 16; it must be a list"),
        ({"patch_sizes": ["16"]}, "patch_sizes of config.json is '16'"),
        ({"distr_output": "normal"}, "distr_output of config.json names None"),
        ({"distr_output": {"_target_": "os.system"}}, "names 'os.system'; known are"),
        ({"distr_output": {"_target_": PREFIX + "os.StudentTOutput"}}, "known are"),
        ({"distr_output": {"_target_": PREFIX + "MixtureOutput"}}, "components are None"),
        (
            {"distr_output": {"_target_": PREFIX + "StudentTOutput", "df": 3}},
            "StudentTOutput of config.json has unknown df",
        ),
        ({"moejax": {"colour": 1}}, "moejax of config.json"),
    ],
)
def test_wrong_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(FIELDS | change)


def test_missing_fields_are_listed():
    with pytest.raises(
        ValueError, match=r"config.json lacks d_ff, d_model; a MOIRAI-MoE checkpoint"
    ):
        read_config(
            {name: value for name, value in FIELDS.items() if name not in ("d_ff", "d_model")}
        )


def test_unknown_fields_are_named_and_left_out():
    with pytest.warns(UserWarning, match="does not know: num_experts_per_tok"):
        assert read_config(FIELDS | {"num_experts_per_tok": 4}) == read_config(FIELDS)
    assert read_config(FIELDS | {"_commit_hash": "1"}) == read_config(FIELDS)


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(MODELS / "model_c", tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"needs a config\.json"):
        load_moirai_moe(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"needs a config\.json"):
        load_moirai_moe(folder)


def test_tensors_that_do_not_fit_are_listed(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.mask_encoding"] = np.zeros(3, np.float32)
    del tensors["encoder.norm.weight"]
    tensors["in_proj.weight"] = np.zeros((1, 64, 8), np.float32)
    tensors["in_proj.bias"] = tensors["in_proj.bias"].astype(np.int32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_moirai_moe(folder)
    for part in (
        "missing: encoder.norm.weight",
        "unknown: encoder.mask_encoding",
        "in_proj.weight has (1, 64, 8), the config needs (1, 64, 16)",
        "in_proj.bias is I32",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["encoder.centroid", "encoder.layers.0.ffn.experts.3.fc1.weight"])
def test_weights_that_are_not_finite_are_named(name, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flat[0] = np.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"NaN or infinite: {name}"):
        load_moirai_moe(folder)


def test_variables_of_another_config_are_not_saved(tmp_path):
    config, variables = load_moirai_moe(MODELS / "model_c")
    with pytest.raises(ValueError, match=r"params/final_norm/scale has shape \(64,\)"):
        save_moirai_moe(replace(config, d_model=128), variables, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_folder_and_no_id_is_refused():
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        load_moirai_moe("./no/such/folder")


def test_the_hub_without_network(monkeypatch, tmp_path):
    import huggingface_hub

    def refuse(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"cannot be had \(no connection\).*give the folder"):
        model_folder("owner/name")


def test_the_hub_downloads_only_what_is_read(monkeypatch):
    import huggingface_hub

    asked = {}

    def download(repo, **options):
        asked.update(options, repo=repo)
        return str(MODELS / "model_c")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    config, _ = load_moirai_moe("owner/name", revision="v1")
    assert config.num_layers == 1
    assert (asked["repo"], asked["revision"]) == ("owner/name", "v1")
    assert "*.bin" not in asked["allow_patterns"]


def test_the_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'moejax\[hub\]'"):
        model_folder("owner/name")
