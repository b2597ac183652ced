"""What MoE Transformer's parameters do in the language model. A layer's own: tests/moejax/moe."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.interop.moe_transformer import config_from_seed
from moejax.models.moe_lm import CausalLM, next_token_loss
from moejax.moe.report import expert_report
from moejax.moe.reset import reset_dead_experts
from moejax.moe.usage import aux_loss, expert_load

TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 31,
    "max_position_embeddings": 64,
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "topk_group": 1,
    "min_expert_capacity": 2,
    "max_expert_capacity": 5,
    "moe_warmup_steps": 4,
    "semantic_routing": True,
    "z_loss_coef": 1e-3,
}


def tiny(**parameters):
    """A config whose layers compile fast."""
    config = config_from_seed(**TINY | parameters)
    if config.moe is None:
        return config
    return replace(config, moe=replace(config.moe, dispatch="dense"))


@pytest.fixture(scope="module")
def ids():
    return jax.random.randint(jax.random.key(5), (2, 12), 0, 31)


@pytest.fixture(scope="module")
def variables(ids):
    """Random ones of the model with every option on."""
    shapes = jax.eval_shape(CausalLM(tiny()).init, jax.random.key(0), ids)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), jnp.float32), shapes)


def test_training(ids, variables):
    """Everything on, compiled once for all steps: what learns, and what the outputs tell."""
    model = CausalLM(tiny(num_hidden_layers=1))
    state = {"router_state": variables["router_state"]}
    params = {name: leaf for name, leaf in variables["params"].items() if name != "layers_1"}

    @jax.jit
    def run(params, step):
        def loss(params):
            out, sown = model.apply(
                {"params": params} | state, ids, step=step, train=True, mutable=["moe", "debug"]
            )
            cross, z = next_token_loss(out.logits, ids)
            return cross + 1e-4 * z + aux_loss(sown["moe"]), sown

        return jax.grad(loss, has_aux=True)(params)

    grads, sown = {}, {}
    for step in (0, 2, 1000):
        grads[step], sown[step] = run(params, jnp.int32(step))
    assert run._cache_size() == 1
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads[1000]):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 1e-7, jax.tree_util.keystr(path)
    # the MLP alone at step 0, as g is 0; the balance losses have not begun either
    first = grads[0]["layers_0"]
    assert not np.any(first["moe"]["experts"]["down"])
    assert not np.any(first["moe_share"])
    assert np.any(first["mlp"]["down"])
    terms = {step: sown[step]["moe"]["layers_0"]["moe"]["aux_loss"][0] for step in sown}
    assert terms[0]["load_balance"] == 0
    ratio = terms[2]["load_balance"] / terms[1000]["load_balance"]
    np.testing.assert_allclose(ratio, 0.02, rtol=1e-4)
    assert terms[0]["z"] == terms[1000]["z"] > 0
    report = {step: expert_report(sown[step]["moe"]) for step in sown}
    assert report[0].layers == ("layers_0/moe",)
    assert report[0].expert_usage.shape == (1, 4)
    assert report[0].expert_usage.max() == 2
    assert report[1000].expert_usage.max() == 5
    assert (report[0].dropped > report[1000].dropped).all()
    np.testing.assert_array_equal(
        report[0].routed.sum(-1) - report[0].expert_usage.sum(-1), report[0].dropped
    )
    assert (report[0].imbalance > 0).all()
    # what the training loop does with the load
    load = expert_load(sown[0]["moe"])
    np.testing.assert_allclose(load["layers_0"]["moe"]["load"].mean(), 1, rtol=1e-6)
    new, _, dead = reset_dead_experts(params, (), load, jax.random.key(0), threshold=0.99)
    old, new = (tree["layers_0"]["moe"]["router_kernel"] for tree in (params, new))
    changed = np.asarray(old != new).all(axis=0)
    assert 0 < changed.sum() < 4
    np.testing.assert_array_equal(changed[:4], dead["layers_0"]["moe"]["load"])
    assert sown[0]["debug"]["layers_0"]["ffn_output"][0].shape == (3,)
    assert sown[0]["debug"]["layers_0"]["attention_output"][0][2] == 0


def test_flexible_ffn(ids, variables):
    """a g MoE + (1 - a g) MLP: the two ends, and the middle on the way."""
    params = variables["params"]
    run = jax.jit(
        lambda model, params, step: model.apply(
            variables | {"params": params}, ids, step=step, mutable=["intermediates"]
        ),
        static_argnums=0,
    )

    def first_layer(model, share, step):
        layers = {
            name: layer | {"moe_share": jnp.float32(share)} if "moe_share" in layer else layer
            for name, layer in params.items()
            if isinstance(layer, dict)
        }
        out, sown = run(model, params | layers, step)
        return np.asarray(sown["intermediates"]["hidden"][1]), np.asarray(out.logits)

    both = CausalLM(tiny())
    mlp, mlp_logits = first_layer(CausalLM(replace(tiny(use_moe=False))), 0, None)
    moe, moe_logits = first_layer(CausalLM(tiny(flexible_ffn=False)), 0, None)
    assert np.abs(mlp - moe).max() > 1e-3
    for share, step, weight in [(-50, 4, 0), (50, 4, 1), (0, 4, 0.5), (0, 2, 0.25), (50, 1, 0.25)]:
        found, logits = first_layer(both, share, jnp.int32(step))
        np.testing.assert_allclose(found, weight * moe + (1 - weight) * mlp, atol=1e-5)
        for end, expected in ((0, mlp_logits), (1, moe_logits)):
            if weight == end:
                np.testing.assert_allclose(logits, expected, atol=1e-5)
    # without the MLP, the shared experts carry the warm-up
    plain = CausalLM(tiny(flexible_ffn=False))
    start, half = (first_layer(plain, 0, jnp.int32(step))[0] for step in (0, 2))
    np.testing.assert_allclose(half, 0.5 * (start + moe), atol=1e-5)
    assert np.abs(start - moe).max() > 1e-3


def test_cached_is_uncached(ids, variables):
    model = CausalLM(tiny(num_hidden_layers=1))
    full = jax.jit(model.apply)(variables, ids).logits
    first = jax.jit(partial(model.apply, cache_size=16))(variables, ids[:, :7])
    second = jax.jit(model.apply)(variables, ids[:, 7:], cache=first.cache)
    found = jnp.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(found, full, atol=1e-5)
    context = CausalLM(tiny(semantic_routing="context"))
    with pytest.raises(ValueError, match="semantic_routing 'context' reads a mean"):
        context.apply(variables, ids, cache_size=16)


def test_parallel_block(ids, variables):
    """x + alpha (attention(norm x) + mlp(norm x)), times final_scale."""
    options = {"use_moe": False, "parallel_block": True}

    def first_layer(silenced=(), **scales):
        layer = {
            name: jax.tree.map(jnp.zeros_like, part) if name in silenced else part
            for name, part in variables["params"]["layers_0"].items()
        }
        params = variables["params"] | {"layers_0": layer}
        model = CausalLM(tiny(**options, **scales))
        _, sown = model.apply({"params": params}, ids, mutable=["intermediates"])
        return [np.asarray(hidden) for hidden in sown["intermediates"]["hidden"][:2]]

    x, whole = first_layer()
    _, scaled = first_layer(alpha=0.25, final_scale=3.0)
    np.testing.assert_allclose(scaled, 3 * (x + 0.25 * (whole - x)), atol=1e-5)
    # both branches read x, so neither hears of the other
    attention, mlp = first_layer(silenced=["mlp"])[1], first_layer(silenced=["attention"])[1]
    np.testing.assert_allclose(whole - x, (attention - x) + (mlp - x), atol=1e-5)
    assert min(np.abs(attention - x).max(), np.abs(mlp - x).max()) > 1e-3


def test_debug_prints_only_where_asked(ids, variables, capsys):
    def graph(config):
        return str(jax.make_jaxpr(lambda ids: CausalLM(config).apply(variables, ids).logits)(ids))

    silent = graph(tiny(num_hidden_layers=1))
    assert "debug" not in silent
    assert "callback" not in silent
    model = CausalLM(tiny(num_hidden_layers=1, debug=True))
    jax.jit(model.apply)(variables, ids)
    jax.effects_barrier()
    printed = capsys.readouterr().out
    for name in ("layers_0/attention_output", "layers_0/ffn_output"):
        assert f"{name}: rms " in printed


ROWS = {
    "n_routed_experts": (6, "moe.routing.num_experts", 6),
    "num_experts_per_tok": (3, "moe.routing.top_k", 3),
    "n_shared_experts": (2, "moe.num_shared_experts", 2),
    "moe_intermediate_size": (20, "moe.d_ff", 20),
    "intermediate_size": (40, "d_ff", 40),
    "scoring_func": ("sigmoid", "moe.routing.score", "sigmoid"),
    "topk_method": ("group_limited_greedy", "moe.routing.strategy", "group_limited_greedy"),
    "n_group": (1, "moe.routing.num_groups", 1),
    "topk_group": (2, "moe.routing.num_groups", 1),
    "norm_topk_prob": (False, "moe.routing.normalise", False),
    "router_scaling_factor": (2.5, "moe.routing.scale", 2.5),
    "min_expert_capacity": (3, "moe.capacity.minimum", 3),
    "max_expert_capacity": (9, "moe.capacity.maximum", 9),
    "expert_capacity_factor": (None, "moe.capacity", None),
    "capacity_ramp_rate": (0.1, "moe.schedule.capacity_ramp_steps", 10),
    "moe_warmup_steps": (7, "moe.schedule.warmup_steps", 7),
    "aux_loss_ramp_steps": (9, "moe.schedule.aux_ramp_steps", 9),
    "aux_loss_max_scale": (5.0, "moe.schedule.aux_scale", 5.0),
    "aux_loss_coef": (0.25, "moe.losses.load_balance", 0.25),
    "z_loss_coef": (0.5, "moe.losses.z", 0.5),
    "use_null_expert": (False, "moe.routing.free_experts", ()),
    "null_kind": ("zero", "moe.routing.free_experts", ("zero",)),
    "learned_token_importance": (False, "moe.token_importance", False),
    "semantic_routing": (False, "moe.semantic_routing", None),
    "use_bias_balancing": (False, "moe.bias_rate", 0.0),
    "bias_update_rate": (0.01, "moe.bias_rate", 0.01),
    "router_reset_step": (50, "moe.schedule.reset_steps", 50),
    "flexible_ffn": (False, "flexible_ffn", False),
    "use_moe": (False, "moe", None),
    "sliding_window": (None, "attention.window", None),
    "rope_theta": (1e4, "attention.rope.base", 1e4),
    "rope_type": ("default", "attention.rope.kind", "default"),
    "rms_norm_eps": (1e-6, "norm_eps", 1e-6),
    "eos_token_id": (2, "vocab_size", 31),
    "debug": (True, "debug", True),
}


@pytest.mark.parametrize("name", ROWS)
def test_names(name):
    value, path, expected = ROWS[name]
    found = config_from_seed(**TINY | {name: value})
    for step in path.split("."):
        found = getattr(found, step)
    assert found == expected


def test_defaults():
    config = config_from_seed()
    assert (config.d_model, config.num_layers, config.vocab_size) == (2048, 16, 32000)
    moe = config.moe
    assert moe is not None
    assert moe.free_overflow
    assert moe.capacity is not None
    assert (moe.capacity.minimum, moe.capacity.maximum, moe.capacity.order) == (
        128,
        800,
        "priority",
    )
    assert moe.schedule.capacity_ramp_steps == 20
    assert moe.schedule.reset_steps == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_routed_expert": 4}, "n_routed_expert .did you mean n_routed_experts.."),
        ({"hidden": 4, "zzz": 1}, "unknown parameters: hidden.*zzz"),
        ({"dropout": 0.1}, "dropout is 0.1; only 0.0 is offered: the model has none"),
        ({"use_lora": True}, "there are no adapters"),
        ({"capacity_ramp_rate": 0}, "capacity_ramp_rate is 0"),
        ({"topk_method": "expert_choice"}, "lets later tokens decide"),
        ({"topk_method": "greedy", "n_group": 4}, "strategy 'greedy' has no groups"),
        ({"scoring_func": "cosine"}, "score is 'cosine'"),
        ({"min_expert_capacity": 9}, "maximum is 5, below minimum"),
        ({"output_expert_usage": True}, "expert_report"),
        ({"use_moe": False, "alpha": 0.5}, "they belong to block='parallel'"),
    ],
)
def test_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        config_from_seed(**TINY | parameters)
