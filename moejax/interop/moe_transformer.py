"""The spelling of MoE Transformer's `MoEModelConfig` -> our LMConfig.

    config = config_from_seed(hidden_size=512, num_attention_heads=8, n_routed_experts=8)

Defaults are those of its description, and of its code where the description states none. What each
name does here, and where it differs: docs/moe_lm.md.
"""

import difflib
from typing import Any

from moejax.layers.rope import RopeConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.layer import LossWeights, MoEConfig
from moejax.moe.schedule import Schedule

DEFAULTS: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "use_moe": True,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8192,
    "scoring_func": "softmax",
    "topk_method": "noaux_tc",
    "n_group": 2,
    "topk_group": 2,
    "norm_topk_prob": True,
    "router_scaling_factor": 1.0,
    "min_expert_capacity": 128,
    "max_expert_capacity": 800,
    "expert_capacity_factor": 1.0,
    "capacity_ramp_rate": 0.05,
    "moe_warmup_steps": 100,
    "aux_loss_ramp_steps": 100,
    "aux_loss_coef": 0.5,
    "aux_loss_max_scale": 1.0,
    "z_loss_coef": 0.0,
    "semantic_routing": False,
    "use_null_expert": True,
    "null_kind": "copy",
    "learned_token_importance": True,
    "use_bias_balancing": True,
    "bias_update_rate": 1e-3,
    "router_reset_step": 0,
    "flexible_ffn": True,
    "parallel_block": False,
    "alpha": 1.0,
    "final_scale": 1.0,
    "debug": False,
}
# Names that another part of the project serves: any value is accepted and has no effect here.
ELSEWHERE = (
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "q_lora_rank",
    "k_lora_rank",
    "v_lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_rank",
    "lora_scaling",
)
# Names that are accepted at one value, and why not at others.
FIXED: dict[str, tuple[Any, str]] = {
    "use_lora": (False, "there are no adapters; train the parameters themselves"),
    "dropout": (0.0, "the model has none; use weight decay"),
    "rope_partial_ratio": (1.0, "every feature of a head turns"),
    "initializer_range": (0.02, "it is the embedding's; kernels begin with variance 1 / inputs"),
    "divisibility_mode": ("error", "sizes are never changed behind your back; give ones that fit"),
    "trainable_bias": (False, "the correction bias follows the load, not a gradient"),
    "router_reset_noise_scale": (0.02, "a reset column is drawn anew, which needs no noise"),
    "output_attentions": (False, "attention weights are never all in memory"),
    "output_hidden_states": (False, 'they are sown: apply(..., mutable=["intermediates"])'),
    "output_expert_usage": (
        False,
        'it is sown: apply(..., mutable=["moe"]), then moejax.moe.report.expert_report',
    ),
}


def config_from_seed(**parameters: Any) -> LMConfig:
    """Our config for these parameters of MoEModelConfig; None leaves a default as it is, but
    expert_capacity_factor=None drops nothing and sliding_window=None sees all.

    ValueError for unknown names, with the nearest known one, and for values that are not offered,
    with the reason.
    """
    _refuse_unknown(parameters)
    for name, (value, reason) in FIXED.items():
        if parameters.get(name, value) != value:
            raise ValueError(f"{name} is {parameters[name]!r}; only {value!r} is offered: {reason}")
    nullable = ("expert_capacity_factor", "sliding_window")
    given = {k: v for k, v in parameters.items() if v is not None or k in nullable}
    values: dict[str, Any] = {**DEFAULTS, **given}
    return LMConfig(
        vocab_size=values["vocab_size"],
        d_model=values["hidden_size"],
        num_layers=values["num_hidden_layers"],
        d_ff=values["intermediate_size"],
        attention=_attention(values),
        moe=_moe(values) if values["use_moe"] else None,
        flexible_ffn=values["use_moe"] and values["flexible_ffn"],
        max_len=values["max_position_embeddings"],
        norm_eps=values["rms_norm_eps"],
        block="parallel" if values["parallel_block"] else "sequential",
        layer_scale=values["alpha"],
        final_scale=values["final_scale"],
        debug=values["debug"],
    )


def _refuse_unknown(parameters: dict[str, Any]) -> None:
    known = (*DEFAULTS, *ELSEWHERE, *FIXED)
    unknown = []
    for name in sorted(parameters.keys() - set(known)):
        near = difflib.get_close_matches(name, known, n=1)
        unknown.append(f"{name} (did you mean {near[0]}?)" if near else name)
    if unknown:
        raise ValueError(f"unknown parameters: {', '.join(unknown)}")


def _attention(values: dict[str, Any]) -> AttentionConfig:
    options = {
        "factor": values["factor"],
        "original_max_len": values["original_max_position_embeddings"],
        "low_freq_factor": values["low_freq_factor"],
        "high_freq_factor": values["high_freq_factor"],
    }
    plain = values["rope_type"] == "default"
    rope = RopeConfig(
        kind=values["rope_type"], base=values["rope_theta"], **({} if plain else options)
    )
    return AttentionConfig(
        num_heads=values["num_attention_heads"],
        num_kv_heads=values["num_key_value_heads"],
        head_dim=values["head_dim"],
        window=values["sliding_window"],
        rope=rope,
        norm_eps=values["rms_norm_eps"],
    )


def _routing(values: dict[str, Any]) -> RoutingConfig:
    groups, best = values["n_group"], values["topk_group"]
    if groups == best:
        groups = best = 1  # every group is among the best
    return RoutingConfig(
        num_experts=values["n_routed_experts"],
        top_k=values["num_experts_per_tok"],
        strategy=values["topk_method"],
        score=values["scoring_func"],
        normalise=values["norm_topk_prob"],
        scale=values["router_scaling_factor"],
        use_bias=values["use_bias_balancing"],
        num_groups=groups,
        top_groups=best,
        free_experts=(values["null_kind"],) if values["use_null_expert"] else (),
    )


def _capacity(values: dict[str, Any]) -> CapacityConfig | None:
    if values["expert_capacity_factor"] is None:
        return None
    return CapacityConfig(
        factor=values["expert_capacity_factor"],
        minimum=values["min_expert_capacity"],
        maximum=values["max_expert_capacity"],
        order="priority",
    )


def _moe(values: dict[str, Any]) -> MoEConfig:
    rate, semantic = values["capacity_ramp_rate"], values["semantic_routing"]
    if not 0 < rate <= 1:
        raise ValueError(
            f"capacity_ramp_rate is {rate}; it is the part of the ramp that a step climbs: give a"
            " number, 0 < capacity_ramp_rate <= 1 (1: no ramp)"
        )
    return MoEConfig(
        d_model=values["hidden_size"],
        d_ff=values["moe_intermediate_size"],
        routing=_routing(values),
        num_shared_experts=values["n_shared_experts"],
        capacity=_capacity(values),
        losses=LossWeights(load_balance=values["aux_loss_coef"], z=values["z_loss_coef"]),
        free_overflow=values["use_null_expert"],
        token_importance=values["learned_token_importance"],
        semantic_routing={False: None, True: "token"}.get(semantic, semantic),
        bias_rate=values["bias_update_rate"] if values["use_bias_balancing"] else 0.0,
        schedule=Schedule(
            warmup_steps=values["moe_warmup_steps"],
            capacity_ramp_steps=0 if rate == 1 else round(1 / rate),
            aux_ramp_steps=values["aux_loss_ramp_steps"],
            aux_scale=float(values["aux_loss_max_scale"]),
            reset_steps=values["router_reset_step"],
        ),
    )
