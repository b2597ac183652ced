"""Our config -> the published config.json that means the same, if there is one."""

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from moejax.interop.lm.dialects import write_rope
from moejax.interop.lm.families import FAMILIES, read_config
from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig
from moejax.moe.layer import LossWeights, MoEConfig

Fields = dict[str, Any]


def publish_config(config: LMConfig) -> tuple[str, Fields]:
    """The family that can express the model, and the fields of its config.json.

    Settings of training and of how things are computed are left behind. ValueError, with what the
    nearest family lacks, if no published architecture is the same model.
    """
    tried: dict[str, list[str]] = {}
    for family, fields in _candidates(config):
        try:
            lacking = list(_differences(_essence(config), _essence(read_config(fields))))
        except ValueError as error:
            lacking = [str(error)]
        if not lacking:
            return family, fields
        tried[family] = lacking
    family = min(tried, key=lambda name: len(tried[name]))
    raise ValueError(
        f"no published architecture is this model; the nearest, {family}, cannot express"
        f" {', '.join(tried[family])}"
    )


def _candidates(config: LMConfig) -> Iterator[tuple[str, Fields]]:
    """Every family that has this kind of attention and of layers, its config as near as can be."""
    moe, attention = config.moe, config.attention
    if isinstance(attention, LatentAttentionConfig):
        yield "deepseek_v2", _trunk(config, "deepseek_v2") | _deepseek(config, attention)
        fields = _trunk(config, "deepseek_v3") | _deepseek(config, attention)
        fields.pop("topk_method", None)
        interleaved = attention.rope.interleaved
        yield "deepseek_v3", fields | {"rope_interleave": interleaved}
        return
    plain = _attention(attention)
    if moe is None:
        biases = {"attention_bias": attention.use_bias, "mlp_bias": config.mlp_bias}
        yield "llama", _trunk(config, "llama") | plain | biases
        return
    window = attention.window
    mixtral = plain | {"num_local_experts": moe.routing.num_experts, "sliding_window": window}
    mixtral |= {"intermediate_size": moe.d_ff, "router_jitter_noise": moe.routing.input_jitter}
    yield "mixtral", _trunk(config, "mixtral") | _routing(moe) | mixtral
    qwen = plain | _qwen(config, moe, attention) | {"attention_bias": attention.use_bias}
    yield "qwen3_moe", _trunk(config, "qwen3_moe") | _routing(moe) | qwen
    shared = moe.num_shared_experts * (moe.shared_d_ff or moe.d_ff)
    qwen |= {"qkv_bias": attention.use_bias, "shared_expert_intermediate_size": shared}
    wide = [config.attention_of(i) != attention for i in range(config.num_layers)]
    narrow = "full" if attention.window is None else "sliding"
    qwen["layer_types"] = [f"{'full' if one else narrow}_attention" for one in wide]
    yield "qwen2_moe", _trunk(config, "qwen2_moe") | _routing(moe) | qwen
    olmoe = plain | {"clip_qkv": attention.clip, "attention_bias": attention.use_bias}
    olmoe |= {"num_experts": moe.routing.num_experts, "intermediate_size": moe.d_ff}
    yield "olmoe", _trunk(config, "olmoe") | _routing(moe) | olmoe


def _trunk(config: LMConfig, family: str) -> Fields:
    return {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "hidden_act": "silu",
        "dtype": config.dtype,
    }


def _attention(attention: AttentionConfig) -> Fields:
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_dim,
        "rope_parameters": write_rope(attention.rope) if attention.rope else None,
    }


def _routing(moe: MoEConfig) -> Fields:
    return {
        "num_experts_per_tok": moe.routing.top_k,
        "norm_topk_prob": moe.routing.normalise,
        "router_aux_loss_coef": moe.losses.load_balance,
    }


def _qwen(config: LMConfig, moe: MoEConfig, attention: AttentionConfig) -> Fields:
    return {
        "num_experts": moe.routing.num_experts,
        "moe_intermediate_size": moe.d_ff,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.dense_layers),
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
    }


def _deepseek(config: LMConfig, attention: LatentAttentionConfig) -> Fields:
    fields = {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "qk_nope_head_dim": attention.head_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.value_dim,
        "kv_lora_rank": attention.latent_rank,
        "q_lora_rank": attention.query_rank,
        "attention_bias": attention.use_bias,
        "rope_parameters": write_rope(attention.rope),
        "first_k_dense_replace": len(config.dense_layers),
    }
    if config.moe is None:
        return fields | {"first_k_dense_replace": config.num_layers}
    routing = config.moe.routing
    return fields | {
        "n_routed_experts": routing.num_experts,
        "num_experts_per_tok": routing.top_k,
        "moe_intermediate_size": config.moe.d_ff,
        "n_shared_experts": config.moe.num_shared_experts,
        "n_group": routing.num_groups,
        "topk_group": routing.top_groups,
        "topk_method": "greedy" if routing.num_groups == 1 else "group_limited_greedy",
        "norm_topk_prob": routing.normalise,
        "routed_scaling_factor": routing.scale,
    }


def _essence(config: LMConfig) -> LMConfig:
    """The config in one form for all that compute the same: settings without effect, and those of
    training and of how things are computed, are set to one value.
    """
    sparse = [i for i in range(config.num_layers) if config.is_sparse(i)]
    windows = [config.attention_of(i) != config.attention for i in range(config.num_layers)]
    attention = config.attention
    if isinstance(attention, AttentionConfig) and attention.qk_norm is None:
        attention = replace(attention, norm_eps=config.norm_eps)
    return replace(
        config,
        attention=attention,
        moe=_moe_essence(config.moe) if config.moe and sparse else None,
        dense_layers=config.dense_layers if sparse else (),
        window_layers=config.window_layers if any(windows) else None,
        d_ff=1 if len(sparse) == config.num_layers else config.d_ff,
        mlp_bias=config.mlp_bias and len(sparse) < config.num_layers,
        dtype="float32",
        remat="nothing",
    )


def _moe_essence(moe: MoEConfig) -> MoEConfig:
    shared = moe.num_shared_experts * (moe.shared_d_ff or moe.d_ff)
    routing = moe.routing
    if routing.strategy == "group_limited_greedy" and routing.num_groups == 1:
        routing = replace(routing, strategy="greedy")
    return replace(
        moe,
        routing=routing,
        capacity=None,
        dispatch="auto",
        router="xla",
        losses=LossWeights(),
        balanced_value=1.0,
        num_shared_experts=1 if shared else 0,
        shared_d_ff=shared or None,
    )


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """The fields of `ours` that `theirs` has otherwise, as path=value."""
    if not dataclasses.is_dataclass(ours) or type(ours) is not type(theirs):
        if ours != theirs:
            yield f"{path}={ours!r}"
        return
    for field in dataclasses.fields(ours):
        inside = f"{path}.{field.name}".removeprefix(".")
        yield from _differences(getattr(ours, field.name), getattr(theirs, field.name), inside)
