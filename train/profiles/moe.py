"""The MoE layer taken apart: router, layer (router, dispatch, experts, combine), block.

The layer's steps are those of the dispatch "blockpad": choices sorted by expert, tokens copied into
that order, experts on their rows, the weighted sum back. The same experts behind capacity
("gather") and the other dispatches stand beside them as wholes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moejax.layers.cache import own_span
from moejax.layers.norm import Norm
from moejax.layers.self_attention import AttentionConfig, SelfAttention
from moejax.moe.assignment import Routing
from moejax.moe.block import BlockConfig, MoEBlock
from moejax.moe.blocks import block_sizes, sorted_experts, spare_rows
from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.dispatch import DISPATCH
from moejax.moe.layer import MoEConfig, MoELayer
from moejax.moe.losses import routed_load_balance, z_loss
from moejax.moe.permute import collect, sorted_slots, spread
from moejax.moe.routing import route, router_logits
from moejax.moe.usage import usage
from train.profile import Section, Step, cost_all


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is profiled."""

    batch: int = 8
    length: int = 512
    width: int = 512
    hidden: int = 1024
    experts: int = 8
    top_k: int = 2
    heads: int = 8
    rounds: int = 5
    dispatches: tuple[str, ...] = ("blockpad", "gather")

    @property
    def text(self) -> str:
        return (
            f"{self.batch} x {self.length} tokens, D {self.width}, F {self.hidden} SwiGLU,"
            f" E {self.experts}, k {self.top_k}, float32"
        )


def measure(say: Callable[[str], Any] = print, sizes: Sizes | None = None) -> list[Section]:
    """Router, layer and block."""
    sizes = sizes or Sizes()
    sections = []
    for name, make in (("router", router), ("layer", layer), ("block", block)):
        say(f"profiling the {name}")
        sections.append(make(sizes))
    return sections


def router(sizes: Sizes) -> Section:
    """Logits, choice, places by capacity, statistics and losses."""
    x_TD, variables = _tokens(sizes), _variables(sizes)
    kernel = variables["params"]["router_kernel"]
    config = RoutingConfig(num_experts=sizes.experts, top_k=sizes.top_k)
    limits = CapacityConfig()
    logits = jax.jit(router_logits)(x_TD, kernel)
    wanted: Routing = jax.jit(lambda logits: route(logits, config))(logits)
    kept: Routing = jax.jit(lambda wanted: apply_capacity(wanted, limits))(wanted)

    def losses(wanted):
        return routed_load_balance(wanted), z_loss(wanted)

    def whole(x_TD, kernel):
        wanted = route(router_logits(x_TD, kernel), config)
        kept = apply_capacity(wanted, limits)
        return kept, usage(wanted, kept), losses(wanted)

    steps = [
        Step(name="logits", function=router_logits, arguments=(x_TD, kernel)),
        Step(name="scores and choice", function=lambda l: route(l, config), arguments=(logits,)),
        Step(
            name="places by capacity",
            function=lambda wanted: apply_capacity(wanted, limits),
            arguments=(wanted,),
        ),
        Step(name="usage", function=usage, arguments=(wanted, kept)),
        Step(name="losses", function=losses, arguments=(wanted,)),
        Step(name="**router**", function=whole, arguments=(x_TD, kernel)),
    ]
    costs = cost_all(steps, rounds=sizes.rounds)
    return Section(
        name="router",
        title="MoE router",
        setting=sizes.text,
        steps=tuple(costs[:-1]),
        whole=costs[-1],
        notes=("Without capacity there are no places to find; usage is counted where it is sown.",),
    )


def layer(sizes: Sizes) -> Section:
    """Router, dispatch, experts, combine; forward, then with gradients and other dispatches."""
    x_TD, variables = _tokens(sizes), _variables(sizes)
    kernel, params = (variables["params"][name] for name in ("router_kernel", "experts"))
    config = RoutingConfig(num_experts=sizes.experts, top_k=sizes.top_k)
    blocks = block_sizes(len(x_TD) * sizes.top_k, sizes.experts)
    module = MoELayer(_config(sizes, "blockpad"))

    def choose(x_TD, kernel):
        return route(router_logits(x_TD, kernel), config)

    def send(x_TD, routing):
        slots, count_E = sorted_slots(routing, spare=spare_rows(blocks))
        return spread(x_TD, slots), slots, count_E

    def experts(x_ND, count_E, params):
        return sorted_experts(x_ND, count_E, params, blocks)

    def combine(y_ND, weight_Tk, slots):
        return collect(y_ND, weight_Tk, slots)

    routing = jax.jit(choose)(x_TD, kernel)
    x_ND, slots, count_E = jax.jit(send)(x_TD, routing)
    y_ND = jax.jit(experts)(x_ND, count_E, params)
    steps = [
        Step(name="router", function=choose, arguments=(x_TD, kernel)),
        Step(name="dispatch", function=send, arguments=(x_TD, routing)),
        Step(name="experts", function=experts, arguments=(x_ND, count_E, params)),
        Step(name="combine", function=combine, arguments=(y_ND, routing.kept_weight, slots)),
        Step(name="**layer**", function=module.apply, arguments=(variables, x_TD)),
    ]
    steps += _passes(sizes, variables, x_TD)
    steps += [
        Step(
            name=f"dispatch {name} alone",
            function=_limited(name),
            arguments=(x_TD, routing, params),
        )
        for name in sizes.dispatches
    ]
    costs = cost_all(steps, rounds=sizes.rounds)
    flops = 2 * 3 * sizes.width * sizes.hidden * len(x_TD) * sizes.top_k / 1e9
    rate = flops / costs[2].seconds
    return Section(
        name="moe_layer",
        title="MoE layer",
        setting=f"{sizes.text}, evaluation without capacity, dispatch blockpad",
        steps=tuple(costs[:4]),
        whole=costs[4],
        extra=tuple(costs[5:]),
        notes=(
            f"The experts' matmuls are {flops:.3g} GFLOP forward: {rate:.0f} GFLOP/s.",
            "Forward+backward is in training mode with capacity 1.25. The steps write what lies"
            " between them to memory, which the whole layer keeps to itself where XLA can.",
        ),
    )


def block(sizes: Sizes) -> Section:
    """Norms, attention and the layer."""
    x_BSD = _tokens(sizes).reshape(sizes.batch, sizes.length, sizes.width)
    config = BlockConfig(
        moe=_config(sizes, "auto"),
        attention=AttentionConfig(
            num_heads=sizes.heads, num_kv_heads=sizes.heads, head_dim=sizes.width // sizes.heads
        ),
    )
    attention = SelfAttention(config.attention)
    module = MoEBlock(config)
    variables = jax.jit(module.init)(jax.random.key(0), x_BSD[:1, :8])
    variables = {"params": variables["params"]}
    norm = Norm(config.norm, config.norm_eps).apply

    def attend(variables, x_BSD):
        return attention.apply(variables, x_BSD, own_span(x_BSD.shape[1]))

    parts = {
        "norm": (norm, "attention_norm"),
        "attention": (attend, "attention"),
        "norm ": (norm, "moe_norm"),
        "MoE layer": (MoELayer(config.moe).apply, "moe"),
    }
    steps = [
        Step(
            name=name.strip(),
            function=function,
            arguments=({"params": variables["params"][key]}, x_BSD),
        )
        for name, (function, key) in parts.items()
    ]
    steps += [
        Step(name="**block**", function=module.apply, arguments=(variables, x_BSD)),
        Step(
            name="block, forward+backward",
            function=_gradients(partial(module.apply, train=True)),
            arguments=(variables, x_BSD),
        ),
    ]
    costs = cost_all(steps, rounds=sizes.rounds)
    return Section(
        name="transformer_block",
        title="Transformer block",
        setting=f"{sizes.text}, {sizes.heads} heads, causal",
        steps=tuple(costs[:4]),
        whole=costs[4],
        extra=tuple(costs[5:]),
        notes=("Adding the branches to the stream is in the whole only.",),
    )


def _passes(sizes: Sizes, variables: Any, x_TD: jax.Array) -> list[Step]:
    """The layer with gradients, by dispatch."""
    return [
        Step(
            name=f"layer, forward+backward, {name}",
            function=_gradients(partial(MoELayer(_config(sizes, name)).apply, train=True)),
            arguments=(variables, x_TD),
        )
        for name in sizes.dispatches
    ]


def _limited(name: str) -> Callable[..., jax.Array]:
    """A dispatch with its search for places."""

    def send(x_TD, routing, params):
        if name == "gather":
            routing = apply_capacity(routing, CapacityConfig())
        return DISPATCH[name](x_TD, routing, params)

    return send


def _gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    def both(variables, x):
        y, pull = jax.vjp(function, variables, x)
        return y, pull(jnp.ones_like(y))

    return both


def _config(sizes: Sizes, dispatch: Any) -> MoEConfig:
    routing = RoutingConfig(num_experts=sizes.experts, top_k=sizes.top_k)
    return MoEConfig(d_model=sizes.width, d_ff=sizes.hidden, routing=routing, dispatch=dispatch)


def _tokens(sizes: Sizes) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (sizes.batch * sizes.length, sizes.width))


def _variables(sizes: Sizes) -> Any:
    init = jax.jit(MoELayer(_config(sizes, "auto")).init)
    return {"params": init(jax.random.key(1), _tokens(sizes)[:8])["params"]}
