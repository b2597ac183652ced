"""Where each of our arrays is found in a checkpoint, and what does not fit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from moejax.interop.checkpoint import Checkpoint, Stored
from moejax.interop.lm.names import Layout, layouts
from moejax.models.moe_lm import CausalLM, LMConfig

# The one matrix that published models keep as we do.
_EMBEDDING = "params/embedding"
_LAYER = re.compile(r"(model\.layers\.(\d+)\.).*")


@dataclass(frozen=True)
class Source:
    """An array of ours, and how a checkpoint holds it: in which tensors, as rows of outputs?"""

    shape: tuple[int, ...]
    layout: Layout
    transposed: bool

    @property
    def published_shape(self) -> tuple[int, ...]:
        """Of each of its tensors."""
        shape = self.shape[1:] if self.layout.each else self.shape
        if self.transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if self.layout.half is not None:
            shape = (shape[0], 2 * shape[1], shape[2])
        return shape

    def present(self, tensors: Mapping[str, Stored]) -> float:
        """The share of its tensors that are there."""
        return sum(name in tensors for name in self.layout.names) / len(self.layout.names)


@lru_cache(maxsize=4)
def variable_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's variables by path, such as params/layers_0/attention/query."""
    # one layer of each kind is traced, however many there are
    kinds = sorted({config.is_sparse(i) for i in range(config.num_layers)})
    moe = None if config.moe is None else replace(config.moe, dispatch="dense")
    dense = (0,) if False in kinds and moe else ()
    small = replace(config, num_layers=len(kinds), dense_layers=dense, window_layers=None, moe=moe)
    ids_BS = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    variables = jax.eval_shape(CausalLM(small).init, jax.random.key(0), ids_BS)
    shapes: dict[str, tuple[int, ...]] = {}
    for collection in ("params", "router_state"):
        leaves: dict[str, Any] = flatten_dict(variables.get(collection, {}), sep="/")
        for path, leaf in leaves.items():
            layer, _, rest = path.partition("/")
            kind = layer.removeprefix("layers_")
            if kind == layer:
                shapes[f"{collection}/{path}"] = leaf.shape
                continue
            for i in range(config.num_layers):
                if config.is_sparse(i) == kinds[int(kind)]:
                    shapes[f"{collection}/layers_{i}/{rest}"] = leaf.shape
    return shapes


def sources(config: LMConfig, family: str) -> dict[str, list[Source]]:
    """For each array the ways to hold it, the usual one first; none where there is no way."""
    num_experts = config.moe.routing.num_experts if config.moe else 0
    return {
        path: [
            Source(shape, layout, len(shape) > 1 and path != _EMBEDDING)
            for layout in layouts(path, family, num_experts)
        ]
        for path, shape in variable_shapes(config).items()
    }


def fit(
    config: LMConfig, family: str, checkpoint: Checkpoint, num_extra_layers: int
) -> dict[str, Source]:
    """The source of each array; `num_extra_layers` behind the model's own are left out.

    ValueError lists tensors that are missing, unknown, of another shape or dtype, by name.
    """
    tensors = checkpoint.tensors
    chosen = {
        path: max(ways, key=lambda way: way.present(tensors))
        for path, ways in sources(config, family).items()
    }
    checkpoint.require(
        {
            name: source.published_shape
            for source in chosen.values()
            for name in source.layout.names
        },
        lambda name: _is_left_out(name, config, tensors, num_extra_layers),
        float8=True,
    )
    return chosen


def _is_left_out(
    name: str, config: LMConfig, tensors: Mapping[str, Stored], num_extra_layers: int
) -> bool:
    """Whether a tensor is no part of the model: tables, a tied head, layers for training only."""
    if name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tied_head):
        return True
    layer = _LAYER.fullmatch(name)
    if layer is None or int(layer[2]) < config.num_layers:
        return False
    # DeepSeek-V3's layers that predict further tokens join two hidden states by eh_proj
    extra = int(layer[2]) < config.num_layers + num_extra_layers
    return extra or f"{layer[1]}eh_proj.weight" in tensors
