"""A Chronos as a folder of programs: from which sources, and that it forecasts as its model."""

import json

import jax
import numpy as np
import pytest

from lowering.backends.reference import HostSession
from lowering.runtime.bolt import BoltForecaster
from lowering.runtime.chronos import ChronosForecaster, Decoding
from lowering.runtime.folder import load, program_folders
from lowering.runtime.forecasters import read_card
from lowering.runtime.packing import Series
from lowering.runtime.sampling import Sampling
from moejax.forecasting.chronos.forecaster import make_pipeline
from moejax.interop.chronos import initial, save_chronos
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_bolt import BoltConfig
from moejax.models.chronos_config import ChronosConfig
from moejax.models.t5 import T5Config
from train.lower import lower_source

SMALL = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1}
TOKENS = ChronosConfig(
    n_tokens=40,
    context_length=30,
    prediction_length=8,
    num_samples=2,
    tokenizer_kwargs={"low_limit": -4.0, "high_limit": 4.0},
    use_moe=True,
    num_experts=3,
    router_hidden_dim=8,
    shared_layers=1,
)
MIXTURE = ChronosModelConfig(
    t5=T5Config(vocab_size=40, **SMALL | {"num_decoder_layers": 2}), chronos=TOKENS
)
BOLT = BoltConfig(
    t5=T5Config(vocab_size=2, **SMALL), context_length=24, prediction_length=8, input_patch_size=8
)
RNG = np.random.default_rng(0)
HISTORIES = [4 + np.cumsum(RNG.standard_normal(length)) for length in (50, 9)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints and their programs."""
    place = tmp_path_factory.mktemp("chronos")
    for name, config in (("mixture", MIXTURE), ("bolt", BOLT)):
        save_chronos(config, initial(config, jax.random.key(0)), place / name)
        reports = lower_source(
            str(place / name), place / f"{name}.p", policy="float32", check="none", batch=2
        )
        assert all(row["ok"] for report in reports.values() for row in report["parity"])
    return place


def rows() -> list[Series]:
    return [Series(target=one[None]) for one in HISTORIES]


def test_a_mixtures_folder_forecasts_as_the_model_does(folders):
    parts = [load(part) for part in program_folders(folders / "mixture.p")]
    decode, encode = (HostSession(part.program, part.weights, "exact") for part in parts)
    decode.numbers = encode.numbers
    card = read_card(folders / "mixture.p")
    forecaster = ChronosForecaster(Decoding(encode, decode, card), card)
    found = forecaster.forecast(
        rows(), num_samples=1, horizon=12, sampling=Sampling(temperature=0.0)
    )
    pipeline = make_pipeline(MIXTURE, initial(MIXTURE, jax.random.key(0)))
    with pytest.warns(UserWarning, match="trained for 8 steps"):
        wanted = pipeline.predict(HISTORIES, 12, num_samples=1, top_k=1)  # type: ignore[call-arg]
    for one_NTC, other_NT in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one_NTC[..., 0], other_NT, rtol=1e-5)


def test_a_bolts_folder_forecasts_as_the_model_does(folders):
    part = load(folders / "bolt.p")
    program = HostSession(part.program, part.weights, "exact")
    found = BoltForecaster(program, read_card(folders / "bolt.p")).forecast(rows(), horizon=12)
    pipeline = make_pipeline(BOLT, initial(BOLT, jax.random.key(0)))
    with pytest.warns(UserWarning, match="trained for 8 steps"):
        wanted = pipeline.predict(HISTORIES, 12)
    for one, other_QT in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.values[..., 0], other_QT, rtol=1e-4, atol=1e-4)


def test_both_programs_share_their_weights(folders):
    files = [part / "weights.safetensors" for part in program_folders(folders / "mixture.p")]
    assert len({file.stat().st_ino for file in files}) == 1
    head = json.loads((folders / "mixture.p/forecaster.json").read_text())
    assert (head["kind"], head["routed"], head["sizes"]["tokens"]) == ("chronos", True, 32)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mixture", {"prompt": 32}, "a Chronos, which takes no prompt"),
        ("mixture", {"context": 31}, "context at most 30"),
        ("bolt", {"context": 7}, "context from 8 to 24"),
        ("bolt", {"samples": 3}, "draws no samples"),
    ],
)
def test_sizes_that_do_not_fit(folders, tmp_path, name, options, words):
    with pytest.raises(ValueError, match=words):
        lower_source(str(folders / name), tmp_path / "p", check="none", **options)
    assert not (tmp_path / "p").exists()


def test_other_files_are_not_overwritten(folders, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds files but no lowered program"):
        lower_source(str(folders / "mixture"), tmp_path, check="none")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
