"""Settings that make no sense are refused with the reason."""

import pytest

from moejax.moe.config import CapacityConfig, RoutingConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "num_experts is 0; it must be a whole number >= 1"),
        ({"num_experts": 4, "top_k": 5}, "top_k is 5; there are only 4 experts"),
        ({"num_experts": 4, "top_k": 0}, "top_k is 0"),
        ({"num_experts": 4, "strategy": "best"}, "strategy is 'best'; choose one of 'greedy'"),
        ({"num_experts": 4, "score": "cosine"}, "score is 'cosine'"),
        ({"num_experts": 4, "free_experts": ("null",)}, "free_experts is 'null'"),
        ({"num_experts": 4, "input_jitter": 1.0}, "input_jitter is 1.0"),
        ({"num_experts": 4, "logit_jitter": -0.1}, "logit_jitter -0.1"),
        ({"num_experts": 4, "scale": 0.0}, "scale is 0.0"),
        ({"num_experts": 4, "num_groups": 2}, "strategy 'greedy' has no groups"),
        ({"num_experts": 4, "strategy": "expert_choice"}, "allow_non_causal=True"),
        ({"num_experts": 4, "strategy": "soft"}, "allow_non_causal=True"),
        ({"num_experts": 4, "strategy": "top_2", "top_k": 1}, "exactly 2 experts"),
        ({"num_experts": 4, "strategy": "top_2", "use_bias": True}, "neither use_bias nor"),
        ({"num_experts": 4, "strategy": "top_2", "score": "sigmoid"}, "scores by softmax"),
    ],
)
def test_routing(fields, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_groups": 5}, "num_groups is 5; it must divide the 12 experts"),
        ({"num_groups": 3, "top_groups": 4}, "top_groups is 4; there are only 3 groups"),
        ({"num_groups": 12, "top_groups": 2}, "a group needs at least 2 experts"),
        ({"num_groups": 6, "top_groups": 1, "top_k": 3}, "1 groups of 2 experts hold only 2"),
    ],
)
def test_groups(fields, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(num_experts=12, strategy="noaux_tc", **fields)


def test_free_experts_can_be_chosen():
    config = RoutingConfig(num_experts=2, top_k=3, free_experts=("zero",), use_bias=True)
    assert config.num_outputs == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 0.0}, "a capacity of 0 serves no token"),
        ({"factor": float("inf")}, "factor is inf"),
        ({"minimum": 0}, "minimum is 0"),
        ({"minimum": 4, "maximum": 2}, "maximum is 2, below minimum, which is 4"),
        ({"maximum": 0}, "maximum is 0"),
        ({"order": "random"}, "order is 'random'"),
        ({"scope": "token"}, "scope is 'token'"),
    ],
)
def test_capacity(fields, message):
    with pytest.raises(ValueError, match=message):
        CapacityConfig(**fields)
