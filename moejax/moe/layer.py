"""MoELayer: router, dispatch and experts as one Linen module, for anyone's model.

class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        routing = RoutingConfig(num_experts=8, top_k=2)
        return x + MoELayer(MoEConfig(d_model=512, d_ff=1024, routing=routing))(x, train=train)

y, sown = block.apply(variables, x, train=True, mutable=["moe"])
loss = task_loss(y) + aux_loss(sown["moe"])
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.checks import require_choice, require_positive
from moejax.layers.init import FAN_IN, STACKED_FAN_IN
from moejax.moe.assignment import Routing
from moejax.moe.balancing import COLLECTION
from moejax.moe.capacity import apply_capacity, capacity_of, overflow_to
from moejax.moe.centroids import CENTROIDS, Centroids, centroid_logits
from moejax.moe.config import NON_CAUSAL, CapacityConfig, RoutingConfig
from moejax.moe.dispatch import DISPATCH, Implementation, dispatch
from moejax.moe.experts import Experts, Params, expert_mlp, narrow
from moejax.moe.free import free_output
from moejax.moe.importance import TokenImportance
from moejax.moe.losses import (
    mean_probability_error,
    routed_load_balance,
    router_entropy,
    z_loss,
)
from moejax.moe.routing import route, router_logits
from moejax.moe.schedule import Schedule
from moejax.moe.semantic import SemanticView
from moejax.moe.soft import soft_moe
from moejax.moe.usage import usage


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What each auxiliary loss counts for; see losses.py. `entropy` is subtracted: it is wanted."""

    load_balance: float = 0.01
    sequence_balance: float = 0.0
    mean_probability: float = 0.0
    z: float = 0.0
    entropy: float = 0.0


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Sizes and habits of a layer.

    `capacity` holds in training, `eval_capacity` otherwise; None drops nothing. With expert choice
    `capacity` holds in both. `num_shared_experts` of width `shared_d_ff` (None: d_ff) see every
    token, as one MLP of their total width, times sigmoid(x . g) with `shared_gate`.
    `balanced_value` is the load balance of even use: 1, or top_k as Mixtral counts.

    `free_overflow`: choices dropped over capacity go to the first free expert. `token_importance`:
    a learned importance of tokens orders the queues (capacity order "priority") and weighs the
    routed output. `semantic_routing`: the router reads a learned view of the "token", or also of
    the "context" before it. `schedule`: what depends on the training step. `bias_rate` is for the
    training loop: update_router_state's rate.

    MoE++: `gating_residual`, the router adds a learned map of the previous layer's logits, and the
    layer returns (y, logits). `tau`: a free expert counts as 1 / tau experts for the capacity of
    the real ones, and by tau in the load balance; None leaves it out of the one, 1 of the other.

    `centroids`: the router has no kernel; distance to fixed centroids decides (centroids.py).
    """

    d_model: int
    d_ff: int
    routing: RoutingConfig
    expert: Literal["swiglu", "gelu"] = "swiglu"
    use_bias: bool = False
    num_shared_experts: int = 0
    shared_d_ff: int | None = None
    shared_gate: bool = False
    capacity: CapacityConfig | None = field(default_factory=CapacityConfig)
    eval_capacity: CapacityConfig | None = None
    dispatch: Implementation = "auto"
    router: Literal["xla", "pallas"] | None = "xla"
    losses: LossWeights = field(default_factory=LossWeights)
    balanced_value: float = 1.0
    free_overflow: bool = False
    token_importance: bool = False
    semantic_routing: Literal["token", "context"] | None = None
    schedule: Schedule = field(default_factory=Schedule)
    bias_rate: float = 1e-3
    gating_residual: bool = False
    tau: float | None = None
    centroids: Centroids | None = None

    def __post_init__(self):
        require_positive("d_model", self.d_model)
        require_positive("d_ff", self.d_ff)
        require_choice("expert", self.expert, ("swiglu", "gelu"))
        require_choice("dispatch", self.dispatch, ("auto", *DISPATCH))
        if self.shared_d_ff is not None:
            require_positive("shared_d_ff", self.shared_d_ff)
        if self.num_shared_experts < 0:
            raise ValueError(f"num_shared_experts is {self.num_shared_experts}; it must be >= 0")
        if self.shared_gate and not self.num_shared_experts:
            raise ValueError("shared_gate is set without an expert to gate: num_shared_experts=0")
        require_choice("semantic_routing", self.semantic_routing, (None, "token", "context"))
        if self.routing.strategy == "soft" and (self.semantic_routing or self.token_importance):
            raise ValueError(
                "strategy 'soft' routes no single tokens; it takes neither semantic_routing nor"
                " token_importance"
            )
        self._check_plus()
        self._check_overflow()
        self._check_centroids()

    def _check_centroids(self):
        require_choice("centroids", self.centroids, (None, *CENTROIDS))
        routing = self.routing
        if self.centroids and (
            routing.strategy == "soft" or routing.has_bias or routing.input_jitter
        ):
            raise ValueError(
                f"centroids is {self.centroids!r}; strategy {routing.strategy!r} with"
                f" use_bias={routing.use_bias} and input_jitter={routing.input_jitter} needs a"
                " kernel: centroids=None"
            )

    def _check_plus(self):
        if self.routing.strategy == "soft" and self.gating_residual:
            raise ValueError("strategy 'soft' takes no gating_residual: it routes no single tokens")
        if self.tau is None:
            return
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau is {self.tau}; it must be above 0 and at most 1")
        if not self.routing.free_experts:
            raise ValueError("tau is set without a free expert to weigh: free_experts=()")

    def _check_overflow(self):
        if not self.free_overflow:
            return
        if not self.routing.free_experts:
            raise ValueError("free_overflow is set without a free expert to serve: free_experts=()")
        if any(c is not None and c.renormalise for c in (self.capacity, self.eval_capacity)):
            raise ValueError(
                "free_overflow serves every choice; set renormalise=False, which makes up for lost"
                " ones"
            )


class MoELayer(nn.Module):
    """Routed experts, free experts and shared experts, added.

    Shapes: x [..., S, D], mask [..., S] (true: a token that counts) -> [..., S, D] in x's dtype.
    Groups for capacity by sequence, expert choice and Soft MoE are the sequences [S]. Collections:
    params; router_state with the correction bias or the centroids; moe, sown where mutable: `usage`
    and the weighted `aux_loss`; intermediates: `routing`, behind capacity. Rng "router" in
    training, where jitter or a drawn second expert asks for one. `dispatcher` replaces the
    dispatch, for example by one over several devices.

    With `gating_residual` residual_logits [..., S, M] are the previous layer's (None: there is
    none), and the result is (y, logits [..., S, M] float32 for the next layer).
    """

    config: MoEConfig
    dispatcher: Callable[[jax.Array, Routing, Params], jax.Array] | None = None

    def setup(self):
        config = self.config
        sizes = config.d_model, config.d_ff
        options = {"kind": config.expert, "use_bias": config.use_bias}
        self.experts = Experts(*sizes, num_experts=config.routing.num_experts, **options)
        soft = config.routing.strategy == "soft"
        slots = config.routing.slots_per_expert if soft else 1
        outputs = config.routing.num_outputs * slots
        if config.centroids is None:
            self.router_kernel = self.param("router_kernel", FAN_IN, (config.d_model, outputs))
        else:
            shape = outputs, config.d_model
            self.centroids = self.variable(COLLECTION, "centroids", self._draw_centroids, shape)
        if soft:
            self.router_scale = self.param("router_scale", nn.initializers.ones, ())
        if config.routing.has_bias:
            self.router_bias = self.variable(COLLECTION, "bias", jnp.zeros, (outputs,))
        if config.num_shared_experts:
            width = config.num_shared_experts * (config.shared_d_ff or config.d_ff)
            self.shared = Experts(config.d_model, width, **options)
        if config.shared_gate:
            self.shared_gate = self.param("shared_gate", FAN_IN, (config.d_model, 1))
        count = config.routing.free_experts.count("constant")
        if count:
            zeros = nn.initializers.zeros
            self.constant_vector = self.param("constant_vector", zeros, (count, config.d_model))
            shape = count, config.d_model, 2
            self.constant_kernel = self.param("constant_kernel", STACKED_FAN_IN, shape)
        if config.gating_residual:
            self.residual_kernel = self.param("residual_kernel", FAN_IN, (outputs, outputs))
        if config.token_importance:
            self.importance = TokenImportance()
        if config.semantic_routing:
            self.semantic = SemanticView(context=config.semantic_routing == "context")

    def _draw_centroids(self, shape: tuple[int, int]) -> jax.Array:
        return jax.random.normal(self.make_rng("params"), shape)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        *,
        step: jax.Array | None = None,
        residual_logits: jax.Array | None = None,
        train: bool = False,
    ) -> Any:
        if x.ndim < 2 or x.shape[-1] != self.config.d_model:
            raise ValueError(f"x has shape {x.shape}; it must be [..., S, {self.config.d_model}]")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {mask.shape}; x needs {x.shape[:-1]}")
        x_TD = x.reshape(-1, x.shape[-1])
        mask_T = None if mask is None else mask.reshape(-1)
        num_groups = max(math.prod(x.shape[:-2]), 1)
        logits_TM = self._residual(residual_logits, x.shape)
        if self.config.routing.strategy == "soft":
            y_TD = self._soft(x_TD, mask_T, num_groups)
        else:
            wanted = self.route(x_TD, mask_T, logits_TM, num_groups=num_groups, train=train)
            logits_TM = wanted.logits
            y_TD = self._routed(x_TD, wanted, num_groups, step, train)
        if step is not None:
            y_TD = y_TD * self.config.schedule.warmup(step)
        if self.config.num_shared_experts:
            y_TD = y_TD + self._shared(x_TD)
        y = narrow(y_TD, x.dtype).reshape(x.shape)
        if not self.config.gating_residual:
            return y
        assert logits_TM is not None
        return y, logits_TM.reshape(*x.shape[:-1], -1)

    def _residual(self, logits: jax.Array | None, shape: tuple[int, ...]) -> jax.Array | None:
        """What the previous layer's logits add to this layer's: [T, M]."""
        if logits is None:
            return None
        if not self.config.gating_residual:
            raise ValueError("residual_logits are given; set gating_residual=True to use them")
        expected = *shape[:-1], self.config.routing.num_outputs
        if logits.shape != expected:
            raise ValueError(f"residual_logits have shape {logits.shape}; x needs {expected}")
        return router_logits(logits.reshape(-1, expected[-1]), self.residual_kernel)

    def _routed(self, x_TD, wanted: Routing, num_groups: int, step, train: bool) -> jax.Array:
        config = self.config
        importance_T = None
        if config.token_importance:
            importance_T = jnp.where(wanted.valid, self.importance(x_TD), 0.5)
        capacity = config.capacity if train else config.eval_capacity
        routing = wanted
        if capacity is not None and wanted.capacity is None:
            routing = apply_capacity(
                wanted,
                capacity,
                num_groups=num_groups,
                importance_T=importance_T,
                ramp=config.schedule.capacity(step),
                total=config.routing.scale,
                tau=config.tau,
            )
        self._sow(wanted, routing, num_groups, step)
        if config.free_overflow:
            routing = overflow_to(config.routing.num_experts, wanted, routing)
        self.sow("intermediates", "routing", routing)
        y_TD = self._serve(x_TD, routing)
        return y_TD if importance_T is None else y_TD * (2 * importance_T)[:, None]

    def _serve(self, x_TD: jax.Array, routing: Routing) -> jax.Array:
        """The real and the free experts' part: [T, D] -> float32 [T, D]."""
        config = self.config
        params = jax.tree.map(lambda leaf: leaf.astype(x_TD.dtype), self.experts())
        send = self.dispatcher or partial(dispatch, implementation=config.dispatch)
        y_TD = send(x_TD, routing, params).astype(jnp.float32)
        if not config.routing.free_experts:
            return y_TD
        constants = None
        if "constant" in config.routing.free_experts:
            constants = self.constant_vector, self.constant_kernel
        return y_TD + free_output(x_TD, routing, config.routing.free_experts, constants)

    def route(
        self,
        x_TD: jax.Array,
        mask_T: jax.Array | None = None,
        residual_TM: jax.Array | None = None,
        *,
        num_groups: int = 1,
        train: bool = False,
    ) -> Routing:
        """What each token wants, before capacity: [T, D] -> Routing. residual: joins the logits."""
        config = self.config.routing
        if self.config.semantic_routing:
            x_TD = self.semantic(x_TD, mask_T, num_groups)
        draws = config.input_jitter or config.logit_jitter or config.second_expert != "all"
        keys = jax.random.split(self.make_rng("router")) if train and draws else (None, None)
        capacity = None
        if config.strategy == "expert_choice":
            limits = self.config.capacity or CapacityConfig(factor=1.0)
            group = x_TD.shape[0] // max(num_groups, 1)
            capacity = capacity_of(limits, group, config.num_experts, config.top_k)
        logits_TM = self._logits(x_TD, keys[0])
        if residual_TM is not None:
            logits_TM = logits_TM + residual_TM
        if self.config.router != "xla" and config.strategy not in NON_CAUSAL:
            from moejax.kernels.router import fused_route  # Pallas is loaded where it is used

            limits = self.config.capacity if train else self.config.eval_capacity
            by_choice = limits is not None and limits.order == "choice_major"
            by_sequence = limits is not None and limits.scope == "sequence"
            return fused_route(
                logits_TM,
                config,
                bias_M=self.router_bias.value if config.has_bias else None,
                mask_T=mask_T,
                key=keys[1],
                num_groups=num_groups if by_sequence else 1,
                order="choice_major" if by_choice else "token_major",
                implementation=self.config.router,
            )[0]
        return route(
            logits_TM,
            config,
            bias_M=self.router_bias.value if config.has_bias else None,
            mask_T=mask_T,
            key=keys[1],
            capacity=capacity,
            num_groups=num_groups,
        )

    def _logits(self, x_TD: jax.Array, key: jax.Array | None) -> jax.Array:
        if self.config.centroids is not None:
            return centroid_logits(x_TD, self.centroids.value, self.config.centroids)
        jitter = self.config.routing.input_jitter
        return router_logits(x_TD, self.router_kernel, jitter=jitter, key=key)

    def _soft(self, x_TD, mask_T, num_groups: int) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf.astype(x_TD.dtype), self.experts())
        router = self.router_kernel, self.router_scale
        return soft_moe(x_TD, *router, params, self.config.routing, mask_T, num_groups)

    def _shared(self, x_TD: jax.Array) -> jax.Array:
        params = jax.tree.map(lambda leaf: leaf.astype(x_TD.dtype), self.shared())
        y_TD = expert_mlp(x_TD, params)
        if self.config.shared_gate:
            y_TD = y_TD * jax.nn.sigmoid(router_logits(x_TD, self.shared_gate))
        return y_TD

    def _sow(self, wanted: Routing, kept: Routing, num_groups: int, step) -> None:
        if not self.is_mutable_collection("moe") or self.is_initializing():
            return
        self.sow("moe", "usage", usage(wanted, kept))
        balance = partial(
            routed_load_balance,
            wanted,
            balanced_value=self.config.balanced_value,
            free_weight=self.config.tau or 1.0,
        )
        terms: dict[str, Callable[[], Any]] = {
            "load_balance": balance,
            "sequence_balance": lambda: balance(num_groups=num_groups),
            "mean_probability": lambda: mean_probability_error(wanted),
            "z": lambda: z_loss(wanted),
            "entropy": lambda: -router_entropy(wanted),
        }
        weights = {name: getattr(self.config.losses, name) for name in terms}
        ramp = self.config.schedule.aux(step)
        used = {
            name: weights[name] * (1.0 if name == "z" else ramp) * terms[name]()
            for name in terms
            if weights[name]
        }
        self.sow("moe", "aux_loss", used)
