"""A tiny mixture without files, and a tiny model for it."""

from dataclasses import replace

import pytest

from moejax.distributions import DistributionConfig
from moejax.models.moirai_moe import MoiraiMoEConfig
from moejax.moe.layer import LossWeights
from train.moirai_data.config import MixtureConfig
from train.moirai_data.rows import pack_series

MIXTURE = MixtureConfig(
    sources=("temperatures", "synthetic"),
    row_tokens=14,
    min_tokens=3,
    max_tokens=9,
    multivariate=0.3,
    rows=32,
    val_rows=8,
    context=32,
    horizon=16,
    synthetic_series=8,
    synthetic_steps=200,
    score=(),
)
MODEL = MoiraiMoEConfig(
    d_model=64,
    d_ff=8,
    num_layers=1,
    patch_sizes=(8,),
    distribution=DistributionConfig(components=("normal",), mixture=False),
    routing="learned",
    num_experts=4,
    dispatch="dense",
    losses=LossWeights(load_balance=0.01, z=1e-3),
)


@pytest.fixture(scope="session")
def mixture():
    return MIXTURE


@pytest.fixture(scope="session")
def model_config():
    return MODEL


@pytest.fixture(scope="session")
def dense_config():
    return replace(MODEL, num_experts=1, top_k=1, losses=LossWeights(load_balance=0.0))


@pytest.fixture(scope="session")
def series():
    return pack_series(MIXTURE, MODEL.patch_sizes)
