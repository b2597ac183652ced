"""The fused router against the plain one: interpreted on a CPU, compiled on a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from moejax.kernels.router import fused_route, pallas_route, plan_router
from moejax.kernels.router_cases import (
    RouterCase,
    benchmark_cases,
    disagreements,
    equality_cases,
    timing_loop,
)
from moejax.moe.config import RoutingConfig
from moejax.moe.routing import router_logits

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
FIXTURES = Path(__file__).parents[2] / "fixtures" / "moe_lm"
TOP_2 = RoutingConfig(num_experts=5, top_k=2)


def assert_same(case: RouterCase):
    far = disagreements(case)
    gradient = 2e-2 if case.dtype == "bfloat16" else 1e-5
    limits = {"weight": 2e-6, "scores": 2e-6, "gradient": gradient}
    assert {name: far[name] for name in far if far[name] > limits.get(name, 0.0)} == {}


def chosen_cases() -> list[RouterCase]:
    """Every router as it is, and each with one of the changes; a GPU runs them all."""
    cases = equality_cases(75)
    if jax.default_backend() == "gpu":
        return cases
    routers = len(cases) // 4
    return cases[:routers] + [cases[routers * (1 + i % 3) + i] for i in range(routers)]


@pytest.mark.parametrize("case", chosen_cases(), ids=lambda case: case.name)
def test_every_kind_of_router(case):
    assert_same(case)


@pytest.mark.parametrize("tokens", [1, 31, 64, 130])
@pytest.mark.parametrize("order", ["choice_major", "token_major"])
def test_any_number_of_tokens(tokens, order):
    config = RoutingConfig(num_experts=10, top_k=3, score="sigmoid", normalise=False)
    assert_same(RouterCase(name="t", config=config, tokens=tokens, order=order, masked=True))


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (16, 16), (150, 9), (300, 8)])
def test_sizes(num_experts, top_k):
    config = RoutingConfig(num_experts=num_experts, top_k=top_k)
    assert_same(RouterCase(name="s", config=config, tokens=70, masked=True))


def fixture_cases() -> list[str]:
    parameters = json.loads((FIXTURES / "routing.json").read_text())
    return [name for name in parameters if name != "lb"]


def fixture_config(parameters: dict, has_bias: bool) -> RoutingConfig:
    """Our settings for the recorded ones."""
    if "second_expert_policy" in parameters:
        return RoutingConfig(num_experts=parameters["E"], strategy="top_2")
    settings = {
        "num_experts": parameters["E"],
        "top_k": parameters.get("k", 1),
        "score": parameters.get("score", "softmax"),
        "normalise": parameters.get("norm_topk_prob", False),
        "scale": parameters.get("routed_scaling_factor", 1.0),
        "free_experts": ("copy",) * parameters.get("zero_experts", 0),
    }
    if parameters.get("topk_method") == "group_limited_greedy":
        settings["strategy"] = "group_limited_greedy"
    elif "n_group" in parameters and "topk_method" not in parameters:
        settings["strategy"] = "noaux_tc"
    else:
        settings["use_bias"] = has_bias
    if "strategy" in settings:
        settings |= {
            "num_groups": parameters["n_group"],
            "top_groups": parameters["topk_group"],
        }
    return RoutingConfig(**settings)


@pytest.mark.parametrize("name", fixture_cases())
def test_recorded_routers(name):
    parameters = json.loads((FIXTURES / "routing.json").read_text())[name]
    tensors = load_file(FIXTURES / "routing.safetensors")
    case = {
        key.removeprefix(f"{name}."): value
        for key, value in tensors.items()
        if key.startswith(f"{name}.")
    }
    config = fixture_config(parameters, "bias" in case)
    if "logits" in case:
        logits = jnp.asarray(case["logits"]).reshape(-1, config.num_outputs)
    else:
        x = jnp.asarray(case["x"])
        logits = router_logits(x.reshape(-1, x.shape[-1]), jnp.asarray(case["weight"]).T)
    options = {"bias_M": jnp.asarray(case["bias"]) if "bias" in case else None}
    plain, counts = fused_route(logits, config, implementation="xla", **options)
    fused, fused_counts = fused_route(logits, config, implementation="pallas", **options)
    np.testing.assert_array_equal(fused.index, plain.index)
    np.testing.assert_array_equal(fused.position, plain.position)
    np.testing.assert_array_equal(fused_counts, counts)
    np.testing.assert_allclose(fused.weight, plain.weight, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(fused.scores, plain.scores, rtol=1e-6, atol=1e-7)
    if "index" in case and "topk_weight" in case:
        recorded = np.sort(case["index"].reshape(plain.index.shape), axis=-1)
        np.testing.assert_array_equal(np.sort(fused.index, axis=-1), recorded)


def test_logits_that_are_not_finite():
    logits = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    logits[3, 1], logits[7, 2], logits[9] = np.inf, -np.inf, -np.inf
    logits[11], logits[12, 4], logits[13] = np.nan, np.nan, 3e38
    for score in ("softmax", "sigmoid", "identity"):
        config = replace(TOP_2, score=score)
        plain, fused = (
            fused_route(jnp.asarray(logits), config, implementation=name)[0]
            for name in ("xla", "pallas")
        )
        for field in ("index", "weight", "scores", "valid", "position", "logits"):
            ours = np.asarray(getattr(fused, field))
            assert np.isfinite(ours).all()
            np.testing.assert_allclose(ours, getattr(plain, field), rtol=1e-6, err_msg=field)


def test_all_tokens_masked():
    logits = jnp.ones((20, 5))
    routing, counts = fused_route(
        logits, TOP_2, mask_T=jnp.zeros(20, bool), implementation="pallas"
    )
    assert not routing.keep.any()
    assert (routing.position == -1).all()
    assert counts.tolist() == [0] * 5


def test_gradients_reach_only_the_logits():
    config = RoutingConfig(num_experts=6, top_k=2, use_bias=True)
    logits, bias = jax.random.normal(jax.random.key(0), (24, 6)), jnp.linspace(-1.0, 1.0, 6)

    def loss(logits, bias):
        routing, _ = fused_route(logits, config, bias_M=bias, implementation="pallas")
        return jnp.sum(routing.weight**2)

    logits_bar, bias_bar = jax.grad(loss, argnums=(0, 1))(logits, bias)
    assert jnp.abs(logits_bar).max() > 0
    np.testing.assert_array_equal(bias_bar, jnp.zeros(6))


@pytest.mark.parametrize("tiling", [(1, 1, 1), (2, 16, 1), (8, 2, 1), (32, 2, 2)])
def test_tiling_changes_nothing(tiling):
    logits = jax.random.normal(jax.random.key(1), (100, 12))
    config = RoutingConfig(num_experts=12, top_k=4)
    plain, counts = fused_route(logits, config, implementation="xla")
    sizes = dict(zip(("block", "span", "warps"), tiling, strict=True))
    interpret = jax.default_backend() != "gpu"
    plan = plan_router(config, group_tokens=100, interpret=interpret, **sizes)
    fused, fused_counts = pallas_route(plan, logits, config)
    np.testing.assert_array_equal(fused.index, plain.index)
    np.testing.assert_array_equal(fused.position, plain.position)
    np.testing.assert_array_equal(fused_counts, counts)


def test_the_platform_chooses(monkeypatch):
    monkeypatch.setattr("moejax.kernels.router.pallas_route", lambda *_: "kernel")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert fused_route(jnp.ones((4, 5)), TOP_2) == "kernel"
    assert fused_route(jnp.ones((0, 5)), TOP_2)[0].index.shape == (0, 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert fused_route(jnp.ones((4, 5)), TOP_2)[0].index.shape == (4, 2)


def test_what_the_kernel_refuses():
    logits = jnp.ones((4, 5))
    choice = RoutingConfig(num_experts=5, strategy="expert_choice", allow_non_causal=True)
    jitter = RoutingConfig(num_experts=5, logit_jitter=0.1)
    wrong = [
        ((logits, choice), {}, "expert_choice"),
        ((logits, jitter), {"key": jax.random.key(0)}, "random numbers"),
        ((logits[:0], TOP_2), {}, "at least one token"),
        ((jnp.ones((4, 2000)), RoutingConfig(num_experts=2000)), {}, "1024"),
        ((jnp.ones((4, 6)), TOP_2), {}, "needs"),
        ((logits, TOP_2), {"num_groups": 3}, "equal groups"),
        ((logits, TOP_2), {"bias_M": jnp.ones(5)}, "use_bias"),
        ((logits, TOP_2), {"order": "priority"}, "order"),
    ]
    for arguments, options, message in wrong:
        with pytest.raises(ValueError, match=message):
            fused_route(*arguments, implementation="pallas", **options)
    with pytest.raises(ValueError, match="product"):
        plan_router(TOP_2, group_tokens=8, block=24, span=1)


def test_benchmark_cases_are_the_promised_shapes():
    shapes = {(c.tokens, c.config.num_experts, c.config.top_k) for c in benchmark_cases()}
    assert {(16384, 64, 8), (65536, 256, 8)} <= shapes


@pytest.mark.parametrize("backward", [False, True])
def test_timing_loop_runs_every_input(backward):
    case = RouterCase(name="t", config=TOP_2, tokens=9)
    run = timing_loop(case, "xla", seeds=2, loops=3, backward=backward)
    rounds, results = run()
    assert (rounds, len(results)) == (3, 2)
    if not backward:
        expected, _ = case.route(case.inputs(1), "xla")
        np.testing.assert_array_equal(results[1][0], expected.index)
