"""What each published architecture is in our terms: config file -> LMConfig.

Defaults are those of the published implementations for fields that a file leaves out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from moejax.interop.lm.dialects import Published, read_rope
from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import yarn_scale
from moejax.layers.self_attention import AttentionConfig
from moejax.models.moe_lm import LMConfig
from moejax.moe.config import RoutingConfig
from moejax.moe.layer import LossWeights, MoEConfig

_COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "max_position_embeddings": 2048,
    "router_aux_loss_coef": 0.001,
    "decoder_sparse_step": 1,
    "first_k_dense_replace": 0,
    "routed_scaling_factor": 1.0,
}
_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}


@dataclass(frozen=True)
class Family:
    """One architecture: its class in published files, its defaults and how its config is read."""

    architecture: str
    read: Callable[[Published], LMConfig]
    defaults: Mapping[str, Any]


def read_config(fields: Mapping[str, Any]) -> LMConfig:
    """Our config for the fields of a published config.json.

    ValueError for an architecture that is not known, a field that is missing or makes no sense, an
    option that is not implemented.
    """
    name = family_of(fields)
    published = Published(fields, {**_COMMON, **FAMILIES[name].defaults})
    published.require("hidden_act", ("silu", "swish"))
    return FAMILIES[name].read(published)


def family_of(fields: Mapping[str, Any]) -> str:
    """The `model_type`, or the one that `architectures` implies; ValueError if it is unknown."""
    name = fields.get("model_type")
    stated = fields.get("architectures") or [""]
    by_class = {family.architecture: known for known, family in FAMILIES.items()}
    name = by_class.get(stated[0], "") if name is None else name
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type is {fields.get('model_type')!r} and architectures"
            f" {fields.get('architectures')!r}; known are {', '.join(FAMILIES)}"
        )
    return name


def _trunk(p: Published) -> dict[str, Any]:
    """What all have."""
    p.require("dtype", tuple(_DTYPES))
    return {
        "vocab_size": p.size("vocab_size"),
        "d_model": p.size("hidden_size"),
        "num_layers": p.size("num_hidden_layers"),
        "d_ff": p.size("intermediate_size"),
        "max_len": p.size("max_position_embeddings"),
        "norm_eps": p.number("rms_norm_eps"),
        "tied_head": p.flag("tie_word_embeddings"),
        "dtype": _DTYPES[p.get("dtype") or "float32"],
    }


def _attention(p: Published, **options: Any) -> AttentionConfig:
    num_heads = p.size("num_attention_heads")
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=p.size("num_key_value_heads", num_heads),
        head_dim=p.size("head_dim", p.size("hidden_size") // max(num_heads, 1)),
        rope=read_rope(p),
        norm_eps=p.number("rms_norm_eps"),
        **options,
    )


def _biases(p: Published) -> dict[str, bool]:
    return dict.fromkeys(("use_bias", "output_bias"), p.flag("attention_bias"))


def _moe(p: Published, d_ff: str, coefficient: float = 0.0, **options: Any) -> MoEConfig:
    """A layer that drops nothing; `routing` options beside the two counts."""
    top_k = p.size("num_experts_per_tok")
    routing = RoutingConfig(
        num_experts=p.size("num_experts"), top_k=top_k, **options.pop("routing", {})
    )
    return MoEConfig(
        d_model=p.size("hidden_size"),
        d_ff=p.size(d_ff),
        routing=routing,
        capacity=None,
        losses=LossWeights(load_balance=coefficient),
        balanced_value=float(top_k),
        **options,
    )


def _llama(p: Published) -> LMConfig:
    attention = _attention(p, **_biases(p))
    return LMConfig(**_trunk(p), attention=attention, mlp_bias=p.flag("mlp_bias"))


def _mixtral(p: Published) -> LMConfig:
    moe = _moe(
        p,
        "intermediate_size",
        p.number("router_aux_loss_coef"),
        routing={"input_jitter": p.number("router_jitter_noise")},
    )
    attention = _attention(p, window=p.get("sliding_window"))
    return LMConfig(**_trunk(p), attention=attention, moe=moe)


def _olmoe(p: Published) -> LMConfig:
    moe = _moe(
        p,
        "intermediate_size",
        p.number("router_aux_loss_coef"),
        routing={"normalise": p.flag("norm_topk_prob")},
    )
    attention = _attention(p, **_biases(p), qk_norm="full", clip=p.get("clip_qkv"))
    return LMConfig(**_trunk(p), attention=attention, moe=moe)


def _qwen3_moe(p: Published) -> LMConfig:
    window = p.size("sliding_window", 0) if p.flag("use_sliding_window") else 0
    attention = _attention(p, **_biases(p), qk_norm="head", window=window or None)
    return LMConfig(**_trunk(p), attention=attention, **_qwen_layers(p))


def _qwen2_moe(p: Published) -> LMConfig:
    shared = p.size("shared_expert_intermediate_size")
    options = {"num_shared_experts": 1, "shared_d_ff": shared, "shared_gate": True}
    layers = _sliding_layers(p)
    window = p.size("sliding_window") if layers else None
    attention = _attention(p, use_bias=p.flag("qkv_bias"), window=window)
    everywhere = len(layers) in (0, p.size("num_hidden_layers"))
    return LMConfig(
        **_trunk(p),
        attention=attention,
        window_layers=None if everywhere else layers,
        **_qwen_layers(p, **options),
    )


def _sliding_layers(p: Published) -> tuple[int, ...]:
    """The layers of Qwen2-MoE whose attention sees a window only."""
    num_layers = p.size("num_hidden_layers")
    if not p.flag("use_sliding_window"):
        return ()
    kinds = p.get("layer_types")
    if kinds is None:
        first = min(p.size("max_window_layers"), num_layers)
        return tuple(range(0, first, 2))
    if len(kinds) != num_layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"config.json: layer_types is {kinds!r}; it must name 'sliding_attention' or"
            f" 'full_attention' for each of the {num_layers} layers"
        )
    return tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _qwen_layers(p: Published, **options: Any) -> dict[str, Any]:
    """The experts, and which layers have none."""
    step, listed = p.size("decoder_sparse_step"), p.get("mlp_only_layers") or []
    num_layers = p.size("num_hidden_layers")
    if step < 1:
        raise ValueError(f"config.json: decoder_sparse_step is {step}; it must be >= 1")
    dense = tuple(i for i in range(num_layers) if i in listed or (i + 1) % step)
    if p.size("num_experts") == 0 or len(dense) == num_layers:
        return {}
    moe = _moe(
        p,
        "moe_intermediate_size",
        p.number("router_aux_loss_coef"),
        routing={"normalise": p.flag("norm_topk_prob")},
        **options,
    )
    return {"moe": moe, "dense_layers": dense}


def _deepseek(p: Published, *, interleaved: bool, routing: dict[str, Any]) -> LMConfig:
    """Latent attention, dense layers first, shared experts."""
    p.require("moe_layer_freq", (1,))
    rope = read_rope(p, interleaved=interleaved)
    stretched = rope.kind != "default" and rope.mscale_all_dim
    attention = LatentAttentionConfig(
        num_heads=p.size("num_attention_heads"),
        head_dim=p.size("qk_nope_head_dim"),
        rope_dim=p.size("qk_rope_head_dim"),
        value_dim=p.size("v_head_dim"),
        latent_rank=p.size("kv_lora_rank"),
        query_rank=p.get("q_lora_rank"),
        rope=rope,
        use_bias=p.flag("attention_bias"),
        score_scale=yarn_scale(rope.factor, rope.mscale_all_dim or 0) ** 2 if stretched else 1.0,
    )
    num_layers = p.size("num_hidden_layers")
    dense = tuple(range(min(p.size("first_k_dense_replace", 0), num_layers)))
    layers = {}
    if len(dense) < num_layers:
        routing["scale"] = p.number("routed_scaling_factor")
        shared = p.size("n_shared_experts", 0)
        moe = _moe(p, "moe_intermediate_size", routing=routing, num_shared_experts=shared)
        layers = {"moe": moe, "dense_layers": dense}
    return LMConfig(**_trunk(p), attention=attention, **layers)


def _deepseek_v2(p: Published) -> LMConfig:
    p.require("scoring_func", ("softmax",))
    p.require("topk_method", ("greedy", "group_limited_greedy"))
    # the published code ignores it in favour of the scaling factor; the original normalises
    p.require("norm_topk_prob", (False,))
    # it would give the shared experts biases, but not the routed ones
    p.require("mlp_bias", (False,))
    routing: dict[str, Any] = {"normalise": False}
    if p.get("topk_method") == "group_limited_greedy":
        routing |= {"strategy": "group_limited_greedy"} | _groups(p)
    return _deepseek(p, interleaved=True, routing=routing)


def _deepseek_v3(p: Published) -> LMConfig:
    p.require("scoring_func", ("sigmoid",))
    p.require("topk_method", ("noaux_tc",))
    routing = {
        "strategy": "noaux_tc",
        "score": "sigmoid",
        "normalise": p.flag("norm_topk_prob"),
        **_groups(p),
    }
    return _deepseek(p, interleaved=p.flag("rope_interleave"), routing=routing)


def _groups(p: Published) -> dict[str, int]:
    return {"num_groups": p.size("n_group", 1), "top_groups": p.size("topk_group", 1)}


FAMILIES = {
    "llama": Family("LlamaForCausalLM", _llama, {}),
    "mixtral": Family(
        "MixtralForCausalLM",
        _mixtral,
        {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "max_position_embeddings": 131_072,
            "num_key_value_heads": 8,
            "router_jitter_noise": 0.0,
        },
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        _olmoe,
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "router_aux_loss_coef": 0.01},
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        _qwen2_moe,
        {
            "max_position_embeddings": 32_768,
            "num_key_value_heads": 16,
            "qkv_bias": True,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        _qwen3_moe,
        {"max_position_embeddings": 32_768, "num_key_value_heads": 4, "sliding_window": 4096},
    ),
    "deepseek_v2": Family(
        "DeepseekV2ForCausalLM", _deepseek_v2, {"q_lora_rank": 1536, "topk_method": "greedy"}
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        _deepseek_v3,
        {
            "max_position_embeddings": 4096,
            "q_lora_rank": 1536,
            "n_group": 8,
            "topk_group": 4,
            "first_k_dense_replace": 3,
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.5,
            "norm_topk_prob": True,
            "rope_interleave": True,
        },
    ),
}
