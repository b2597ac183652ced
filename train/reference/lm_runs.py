"""Runs of a language model whose results recorded models are compared with.

Recorded models are tiny: to compile takes all the time, so XLA optimises little here, and experts
are dispatched densely (the other dispatches are tested against that one).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.interop.lm.losses import joint_load_balance, published_loss, routings
from moejax.models.moe_lm import CausalLM, LMConfig

Tree = dict[str, Any]

COMPILER = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def plain(config: LMConfig) -> LMConfig:
    """The same model in the form that the runs below compile: dense dispatch, no noise."""
    if config.moe is None:
        return config
    routing = replace(config.moe.routing, input_jitter=0.0, logit_jitter=0.0)
    return replace(config, moe=replace(config.moe, routing=routing, dispatch="dense"))


@dataclass(frozen=True)
class Forward:
    """What a forward run gives: logits [B, S, V], what the model sows, the joint balance loss."""

    logits: np.ndarray
    sown: Tree
    aux_loss: np.ndarray

    @property
    def layers(self) -> dict[int, Tree]:
        """Router, input and output of each MoE layer, rows of tokens."""
        found = {}
        for index, routing in routings(self.sown).items():
            layer = self.sown[f"layers_{index}"]
            moe = {name: layer[f"moe_{name}"][0] for name in ("input", "output")}
            rows = {name: array.reshape(-1, array.shape[-1]) for name, array in moe.items()}
            index_Tk, weight_Tk = np.asarray(routing.index), np.asarray(routing.kept_weight)
            order_Tk = np.argsort(index_Tk, axis=-1)
            found[index] = rows | {
                "router_logits": routing.logits,
                "topk_index": np.take_along_axis(index_Tk, order_Tk, axis=-1),
                "topk_weight": np.take_along_axis(weight_Tk, order_Tk, axis=-1),
            }
        return found


def forward(config: LMConfig, variables: Tree, ids_BS, mask_BS, positions_BS) -> Forward:
    """One plain run."""
    found = _forward(config, variables, ids_BS, mask_BS.astype(bool), positions_BS)
    return Forward(*jax.tree.map(np.asarray, found))


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER)
def _forward(config: LMConfig, variables: Tree, ids_BS, mask_BS, positions_BS):
    out, sown = CausalLM(config).apply(
        variables, ids_BS, mask_BS, positions_BS=positions_BS, mutable=["intermediates"]
    )
    sown = sown["intermediates"]
    return out.logits, sown, joint_load_balance(config, sown)


def greedy(config: LMConfig, variables: Tree, ids_BS, mask_BS, num_steps: int):
    """A greedy continuation with a cache: tokens [B, N] and the logits they came from [N, B, V]."""
    found = _greedy(config, num_steps, variables, ids_BS, mask_BS.astype(bool))
    return tuple(map(np.asarray, found))


@partial(jax.jit, static_argnums=(0, 1), compiler_options=COMPILER)
def _greedy(config: LMConfig, num_steps: int, variables: Tree, ids_BS, mask_BS):
    model: Any = CausalLM(config)
    slots = ids_BS.shape[1] + num_steps
    first = model.apply(variables, ids_BS, mask_BS, cache_size=slots, last_only=True)

    def step(carry, _):
        cache, logits_BV = carry
        token_B = jnp.argmax(logits_BV, axis=-1).astype(ids_BS.dtype)
        out = model.apply(variables, token_B[:, None], cache=cache)
        return (out.cache, out.logits[:, -1]), (token_B, logits_BV)

    start = first.cache, first.logits[:, -1]
    _, (tokens_NB, logits_NBV) = lax.scan(step, start, length=num_steps)
    return tokens_NB.T, logits_NBV


def loss_and_gradient(config: LMConfig, variables: Tree, ids_BS, mask_BS, labels_BS, positions_BS):
    """(training loss, joint balance loss, gradient of the loss by the parameters)."""
    found = _gradient(config, variables, ids_BS, mask_BS.astype(bool), labels_BS, positions_BS)
    return jax.tree.map(np.asarray, found)


@partial(jax.jit, static_argnums=0, compiler_options=COMPILER)
def _gradient(config: LMConfig, variables: Tree, ids_BS, mask_BS, labels_BS, positions_BS):
    def loss(params):
        out, sown = CausalLM(config).apply(
            variables | {"params": params},
            ids_BS,
            mask_BS,
            positions_BS=positions_BS,
            train=True,
            mutable=["intermediates"],
        )
        sown = sown["intermediates"]
        total = published_loss(config, out.logits, labels_BS, sown)
        return total, joint_load_balance(config, sown)

    (total, balance), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return total, balance, gradient
