"""Which published tensors make up each of our arrays.

Published matrices are [out, in], ours [in, out]; the embedding is [V, D] in both. Our experts are
stacked, [E, ...]; published files hold a tensor for each, or one for all with gate and up rows
in one, [E, 2F, D], gate first.
"""

import re
from dataclasses import dataclass

_LAYER = re.compile(r"(params|router_state)/layers_(\d+)/(.+)")

_OUTSIDE = {
    "params/embedding": "model.embed_tokens.weight",
    "params/final_norm/scale": "model.norm.weight",
    "params/head": "lm_head.weight",
}
_INSIDE = {
    "attention_norm/scale": "input_layernorm.weight",
    "ffn_norm/scale": "post_attention_layernorm.weight",
    "moe/router_kernel": "mlp.gate.weight",
    "moe/shared_gate": "mlp.shared_expert_gate.weight",
    "moe/bias": "mlp.gate.e_score_correction_bias",
}
_PROJECTIONS = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "query_down": "q_a_proj",
    "query_up": "q_b_proj",
    "latent_down": "kv_a_proj_with_mqa",
    "latent_up": "kv_b_proj",
}
_NORMS = {"query": "q_norm", "key": "k_norm", "latent": "kv_a_layernorm"}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


@dataclass(frozen=True)
class Layout:
    """One way in which a file holds one of our arrays.

    `names`: the tensor, or with `each` those of the experts in order. `half`: which half of its
    rows is meant, where gate and up are one tensor.
    """

    names: tuple[str, ...]
    each: bool = False
    half: int | None = None


def layouts(path: str, family: str, num_experts: int) -> tuple[Layout, ...]:
    """The layouts of the array at `path`, the usual one first; none for an array that published
    models do not have.
    """
    if path in _OUTSIDE:
        return (Layout((_OUTSIDE[path],)),)
    found = _LAYER.fullmatch(path)
    if found is None:
        return ()
    prefix = f"model.layers.{found[2]}."
    if found[3].startswith("moe/experts/"):
        kind = found[3].removeprefix("moe/experts/")
        return tuple(_experts(prefix, kind, family, num_experts))
    names = _names(found[3], family)
    return tuple(Layout((prefix + name,)) for name in names)


def _names(path: str, family: str) -> tuple[str, ...]:
    """The published names of an array of a layer, without the layer's prefix."""
    if path == "moe/router_kernel" and family == "mixtral":
        return "block_sparse_moe.gate.weight", "mlp.gate.weight"
    if path in _INSIDE:
        return (_INSIDE[path],)
    group, _, rest = path.partition("/")
    if group == "moe" and rest.startswith("shared/"):
        owner = "shared_expert" if family == "qwen2_moe" else "shared_experts"
        return (f"mlp.{owner}.{rest.removeprefix('shared/')}_proj.weight",)
    kind = "bias" if rest.endswith("_bias") else "weight"
    rest = rest.removesuffix("_bias")
    if group == "mlp":
        return (f"mlp.{rest}_proj.{kind}",)
    if group == "attention" and rest in _PROJECTIONS:
        return (f"self_attn.{_PROJECTIONS[rest]}.{kind}",)
    if group == "attention" and rest.endswith("_norm/scale"):
        of = rest.removesuffix("_norm/scale")
        latent = of == "query" and family.startswith("deepseek")
        return (f"self_attn.{'q_a_layernorm' if latent else _NORMS[of]}.weight",)
    return ()


def _experts(prefix: str, kind: str, family: str, num_experts: int):
    """Of each expert, under Mixtral's own names first; then of all experts in one."""
    plain = f"{prefix}mlp.experts."
    if family == "mixtral":
        own = f"{prefix}block_sparse_moe.experts."
        yield Layout(
            tuple(f"{own}{e}.{_MIXTRAL[kind]}.weight" for e in range(num_experts)), each=True
        )
    yield Layout(tuple(f"{plain}{e}.{kind}_proj.weight" for e in range(num_experts)), each=True)
    if kind == "down":
        yield Layout((f"{plain}down_proj",))
    else:
        yield Layout((f"{plain}gate_up_proj",), half=("gate", "up").index(kind))
