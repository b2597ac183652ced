"""Published names of the arrays of T5, Chronos, Chronos-Bolt and Chronos-MoE.

Published matrices are [out, in], ours [in, out], but for tables (embeddings, relative positions).
Stacked experts are published one by one; the fork keeps query, key and value in one tensor.
"""

import re
from dataclasses import dataclass

_BLOCK = {
    "attention_norm/scale": "layer.0.layer_norm",
    "attention/query": "layer.0.SelfAttention.q",
    "attention/key": "layer.0.SelfAttention.k",
    "attention/value": "layer.0.SelfAttention.v",
    "attention/output": "layer.0.SelfAttention.o",
    "cross_norm/scale": "layer.1.layer_norm",
    "cross/query": "layer.1.EncDecAttention.q",
    "cross/key": "layer.1.EncDecAttention.k",
    "cross/value": "layer.1.EncDecAttention.v",
    "cross/output": "layer.1.EncDecAttention.o",
    "ffn_norm/scale": "layer.{ffn}.layer_norm",
    "ffn/gate": "layer.{ffn}.DenseReluDense.wi_0",
    "ffn/wi": "layer.{ffn}.DenseReluDense.{wi}",
    "ffn/wo": "layer.{ffn}.DenseReluDense.wo",
}
_RELATIVE = "block.0.layer.0.SelfAttention.relative_attention_bias"
_HEAD = {"hidden": "expert_ffn.0", "output": "expert_ffn.3", "norm": "layer_norm"}
_ROUTER = {"hidden": "gate.0", "output": "gate.3"}
_PATCH = {"hidden": "hidden_layer", "output": "output_layer", "residual": "residual_layer"}
_PLAIN = {
    "attention_output": "self_attn.out_proj",
    "attention_norm": "norm1",
    "hidden": "linear1",
    "output": "linear2",
    "ffn_norm": "norm2",
}
_SECOND = ("time", "group", "ffn")
_JOINT = ("query", "key", "value")
_TABLES = ("shared", "relative_bias")


@dataclass(frozen=True)
class Name:
    """The tensor of one array (of one expert's). `part`: which third of its rows."""

    tensor: str
    transposed: bool
    part: int | None = None


def published_name(path: str, ndim: int, *, gated: bool, first_tail: int = 0) -> Name:
    """Of the array at `path`, of so many axes without that of experts.

    `first_tail`: the number of the first decoder block that experts have of their own.
    """
    last = path.rsplit("/", 1)[-1]
    transposed = ndim == 2 and last not in _TABLES
    root, _, rest = path.partition("/")
    if root in ("encoder", "decoder"):
        return Name(f"{root}.{_in_stack(root, rest, gated, 0)}.weight", transposed)
    if root == "tail":
        return Name(f"decoder.{_in_stack('decoder', rest, gated, first_tail)}.weight", transposed)
    if root in ("head", "router"):
        table = _HEAD if root == "head" else _ROUTER
        prefix = "" if root == "head" else "router."
        return Name(prefix + _with_bias(table, rest), transposed)
    if root in ("input_patch_embedding", "output_patch_embedding"):
        return Name(f"{root}.{_with_bias(_PATCH, rest)}", transposed)
    return Name(f"{path}.weight", transposed)


def plain_name(path: str, ndim: int) -> Name:
    """Of an array of the fork's own encoder, `encoder/layers_i/...`."""
    _, layer, inner = path.split("/")
    prefix = f"encoder_layers.{layer.removeprefix('layers_')}"
    base = inner.removesuffix("_bias")
    kind = "bias" if inner.endswith("_bias") else "weight"
    if base in _JOINT:
        return Name(f"{prefix}.self_attn.in_proj_{kind}", ndim == 2, _JOINT.index(base))
    return Name(f"{prefix}.{_PLAIN[base]}.{kind}", ndim == 2)


def second_name(path: str, ndim: int) -> Name:
    """Of an array of Chronos-2."""
    match = re.fullmatch(r"blocks_(\d+)/(\w+)/(\w+)", path)
    if match is None and path.startswith("final_norm"):
        return Name("encoder.final_layer_norm.weight", False)
    if match is None:
        return published_name(path, ndim, gated=False)
    index, part, array = match.groups()
    layer = _SECOND.index(part.removesuffix("_norm"))
    inner = "layer_norm"
    if part == "ffn":
        inner = f"mlp.{array}"
    elif not part.endswith("_norm"):
        inner = f"self_attention.{array[0]}"
    return Name(f"encoder.block.{index}.layer.{layer}.{inner}.weight", ndim == 2)


def _in_stack(stack: str, rest: str, gated: bool, first: int) -> str:
    if rest == "relative_bias":
        return _RELATIVE
    if rest == "final_norm/scale":
        return "final_layer_norm"
    match = re.fullmatch(r"(?:stack/)?blocks_(\d+)/(.+)", rest)
    assert match, rest
    inner = _BLOCK[match[2]].format(
        ffn=2 if stack == "decoder" else 1, wi="wi_1" if gated else "wi"
    )
    return f"block.{int(match[1]) + first}.{inner}"


def _with_bias(table: dict[str, str], inner: str) -> str:
    kind = "bias" if inner.endswith("_bias") else "weight"
    return f"{table[inner.removesuffix('_bias')]}.{kind}"
