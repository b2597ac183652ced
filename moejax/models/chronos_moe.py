"""Chronos-MoE: T5 whose contexts are routed, each as a whole, to experts that read or predict.

"shared_then_expert": a shared T5, then the expert heads' logits, mixed. "expert_only": every expert
has an encoder of its own; their states are mixed for the shared decoder, then the experts' logits.
In head mode "encoder" (the community fork) there is no decoder: experts work on encoder positions.

B contexts, R = B * N rows (N samples), U tokens, E experts, k chosen ones, V tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.layers.cache import Layer
from moejax.layers.embedding import embedding
from moejax.models.chronos_config import ChronosConfig
from moejax.models.chronos_experts import ExpertHead, PlainEncoder, Router
from moejax.models.t5 import Decoder, DecoderBlocks, Encoder, Memory, T5Config, new_cache
from moejax.moe.assignment import Routing
from moejax.moe.capacity import apply_capacity
from moejax.moe.config import CapacityConfig, RoutingConfig
from moejax.moe.losses import routed_load_balance
from moejax.moe.routing import route

Tree = Any


@partial(jax.tree_util.register_dataclass, data_fields=["params", "gate"], meta_fields=["indexed"])
@dataclass(frozen=True)
class Chosen:
    """The experts of B contexts: all, params [E, ...] and gate [B, E] (0: not chosen), or where
    `indexed` those that were chosen, params [B, k, ...] and gate [B, k].
    """

    params: Tree
    gate: jax.Array
    indexed: bool

    def map(self, function: Callable[..., Any], shared: Tree, own: Tree = ()) -> Any:
        """function(params, *shared, *own) of every expert: leaves [E, R, ...] or [B, k, N, ...].

        `shared` leaves are [R, ...], or [B, ...] of the contexts; `own` has the result's axes.
        """
        if not self.indexed:
            return jax.vmap(lambda params, own: function(params, *shared, *own))(self.params, own)
        batch = len(self.gate)
        shared = jax.tree.map(lambda leaf: leaf.reshape(batch, -1, *leaf.shape[1:]), shared)

        def context(params, shared, own):
            return jax.vmap(lambda params, own: function(params, *shared, *own))(params, own)

        return jax.vmap(context)(self.params, shared, own)

    def step(self, function: Callable[..., Any], shared: Tree, own: Tree) -> Any:
        """As `map`, of a function that gives (y, the expert's cache)."""
        return self.map(function, shared, own)

    def weighted(self, y: jax.Array) -> jax.Array:
        """Outputs of `map` times their gates."""
        axes = (...,) + (None,) * (y.ndim - 2)
        if self.indexed:
            return y * self.gate[axes].astype(y.dtype)
        gate_ER = jnp.repeat(self.gate.T, y.shape[1] // len(self.gate), axis=1)
        return y * gate_ER[axes].astype(y.dtype)

    def mix(self, y: jax.Array) -> jax.Array:
        """Sum of the outputs by their gates: [R, ...]."""
        if not self.indexed:
            return jnp.sum(self.weighted(y), axis=0)
        y = jnp.sum(self.weighted(y), axis=1)
        return y.reshape(-1, *y.shape[2:])

    def project(self, y: jax.Array, kernel: jax.Array) -> jax.Array:
        """Sum over experts of gate * (y @ kernel), float32 [R, U, V]; kernel [..., D, V]."""
        equation = "bknud,bkdv->bnuv" if self.indexed else "erud,edv->ruv"
        y = jnp.einsum(equation, self.weighted(y), kernel.astype(y.dtype))
        return y.reshape(-1, *y.shape[-2:]).astype(jnp.float32)


@partial(
    jax.tree_util.register_dataclass, data_fields=["logits", "routing", "balance"], meta_fields=[]
)
@dataclass(frozen=True)
class MoEOutput:
    """logits float32 [B, U, V], the routing of the B contexts, the load-balancing loss []."""

    logits: jax.Array
    routing: Routing
    balance: jax.Array


class Expert(nn.Module):
    """All that one expert owns. Initialised here; `ChronosMoE` keeps E of them stacked."""

    t5: T5Config
    moe: ChronosConfig

    def setup(self):
        t5, moe = self.t5, self.moe
        init = nn.initializers.normal(t5.initializer_factor * t5.d_model**-0.5)
        self.lm_head = self.param("lm_head", init, (t5.d_model, t5.vocab_size))
        if moe.moe_architecture == "shared_then_expert":
            self.head = ExpertHead(moe.expert_norm)
        elif moe.head_mode == "decoder":
            self.encoder = Encoder(t5)
        else:
            self.encoder = PlainEncoder(t5.num_layers, t5.num_heads)
        self.num_shared = shared_layers(t5, moe)
        if self.num_shared < t5.num_decoder_layers:
            self.tail = DecoderBlocks(t5, self.num_shared, t5.num_decoder_layers)

    def __call__(self, x_BSD: jax.Array, mask_BS: jax.Array):
        """Everything once, for the parameters."""
        if self.moe.moe_architecture == "expert_only":
            x_BSD = self.read(x_BSD, mask_BS)
        if self.num_shared < self.t5.num_decoder_layers:
            bias = jnp.zeros((1, self.t5.num_heads, x_BSD.shape[1], x_BSD.shape[1]))
            mask = mask_BS[:, None, None, :]
            self.finish(x_BSD, (None, bias), mask, None, None, self.recall(x_BSD))
        return self.predict(x_BSD)

    def read(self, x_BSD: jax.Array, mask_BS: jax.Array, train: bool = False) -> jax.Array:
        """States of embeddings."""
        if isinstance(self.encoder, Encoder):
            return self.encoder(x_BSD, mask_BS, train=train)
        return self.encoder(x_BSD, mask_BS, train)

    def recall(self, states_BSD: jax.Array) -> tuple[Layer, ...]:
        """Memory of the blocks that are the expert's own."""
        return self.tail.memory(states_BSD)

    def finish(self, x_RUD, view, memory_mask, start, cache, memory, train: bool = False):
        """Those blocks."""
        mask, bias = view
        return self.tail(x_RUD, mask, bias, memory, memory_mask, cache, start, train=train)

    def predict(self, x: jax.Array, train: bool = False) -> jax.Array:
        """What `lm_head` reads."""
        return self.head(x, train) if self.moe.moe_architecture == "shared_then_expert" else x


def shared_layers(t5: T5Config, moe: ChronosConfig) -> int:
    """Decoder blocks that all experts share; ValueError if there are not so many."""
    if moe.shared_layers is None or moe.head_mode == "encoder":
        return t5.num_decoder_layers
    if moe.shared_layers > t5.num_decoder_layers:
        raise ValueError(
            f"shared_layers is {moe.shared_layers}; the decoder has {t5.num_decoder_layers} blocks"
        )
    return moe.shared_layers


def own_layers(t5: T5Config, moe: ChronosConfig) -> int:
    """Decoder blocks that each expert has for itself."""
    return t5.num_decoder_layers - shared_layers(t5, moe)


class ChronosMoE(nn.Module):
    """ids [B, S], mask [B, S] (true: a token), decoder_ids [B, U] -> MoEOutput.

    In head mode "encoder" there are no decoder_ids, and U = S.
    """

    t5: T5Config
    moe: ChronosConfig

    def setup(self):
        t5, moe = self.t5, self.moe
        init = nn.initializers.normal(t5.initializer_factor)
        self.shared = self.param("shared", init, (t5.vocab_size, t5.d_model))
        if moe.moe_architecture == "shared_then_expert":
            self.encoder = Encoder(t5)
        if moe.head_mode == "decoder":
            self.decoder = Decoder(t5, shared_layers(t5, moe))
        self.router = Router(moe.num_experts, moe.router_hidden_dim)
        self.experts = self.param("experts", self._init_experts)

    def __call__(
        self,
        ids_BS: jax.Array,
        mask_BS: jax.Array,
        decoder_ids_BU: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> MoEOutput:
        shared_BSD = self.read(ids_BS, mask_BS, train=train)
        routing = self.route(shared_BSD, mask_BS, train=train)
        balance = routed_load_balance(routing)
        if self.moe.head_mode == "encoder":
            chosen = self._dense(routing)
            logits = self._positions(chosen, shared_BSD, mask_BS, train)
            return MoEOutput(chosen.mix(logits), routing, balance)
        if decoder_ids_BU is None:
            raise ValueError("head_mode 'decoder' needs decoder_ids, the tokens to continue")
        memory = self.remember(shared_BSD, mask_BS, self.choose(routing), train=train)
        logits_BUV, _ = self.decode(decoder_ids_BU, memory, train=train)
        return MoEOutput(logits_BUV, routing, balance)

    def read(self, ids_BS: jax.Array, mask_BS: jax.Array, *, train: bool = False) -> jax.Array:
        """What the router reads: the shared encoder's states, or embeddings, [B, S, D]."""
        x_BSD = self.embed(ids_BS)
        if self.moe.moe_architecture == "expert_only":
            return x_BSD
        return self.encoder(x_BSD, mask_BS, train=train)

    def route(self, x_BSD: jax.Array, mask_BS: jax.Array, *, train: bool = False) -> Routing:
        """The experts of each context, by the mean of its tokens; of all positions in the fork.

        The capacity counts in training alone: it makes a context depend on the batch.
        """
        mask_BS1 = mask_BS.astype(bool)[..., None]
        if self.moe.head_mode == "encoder":
            mask_BS1 = jnp.ones_like(mask_BS1)
        x_BSD = jnp.where(mask_BS1, x_BSD.astype(jnp.float32), 0.0)
        context_BD = jnp.sum(x_BSD, axis=1) / jnp.maximum(jnp.sum(mask_BS1, axis=1), 1)
        self.sow("intermediates", "context", context_BD)
        config = RoutingConfig(num_experts=self.moe.num_experts, top_k=self.moe.num_active_experts)
        routing = route(self.router(context_BD, train), config)
        if train and self.moe.expert_capacity is not None:
            return limited(routing, self.moe.expert_capacity)
        return routing

    def choose(self, routing: Routing) -> Chosen:
        """The parameters of the experts that serve each context."""
        batch, k = routing.index.shape
        dispatch = self.moe.expert_dispatch
        fewer = batch * k < self.moe.num_experts
        if dispatch == "indexed" or (dispatch == "auto" and fewer):
            params = jax.tree.map(lambda leaf: leaf[routing.index], self.experts)
            return Chosen(params, routing.kept_weight, True)
        return self._dense(routing)

    def remember(
        self, x_BSD: jax.Array, mask_BS: jax.Array, chosen: Chosen, *, train: bool = False
    ) -> Memory:
        """What decoding needs of the contexts, from what `read` gives."""
        if self.moe.moe_architecture == "expert_only":
            read = self._of_expert(Expert.read, train)
            x_BSD = chosen.mix(chosen.map(read, (x_BSD, mask_BS)))
        self.sow("intermediates", "states", x_BSD)
        mask = mask_BS.astype(bool)[:, None, None, :]
        tails = ()
        if own_layers(self.t5, self.moe):
            tails = chosen.map(self._of_expert(Expert.recall), (x_BSD,))
        return Memory(self.decoder.memory(x_BSD), mask, (chosen, tails))

    def prepare(self, ids_BS: jax.Array, mask_BS: jax.Array) -> tuple[Memory, Routing]:
        """Memory of the contexts, and which experts they go to."""
        x_BSD = self.read(ids_BS, mask_BS)
        routing = self.route(x_BSD, mask_BS)
        return self.remember(x_BSD, mask_BS, self.choose(routing)), routing

    def start_cache(self, rows: int, slots: int, chosen: Chosen) -> Any:
        """Empty caches of the shared blocks and of the experts' own."""
        shared, own = shared_layers(self.t5, self.moe), own_layers(self.t5, self.moe)
        per = len(chosen.gate) if chosen.indexed else 1
        tails = new_cache(self.t5, rows // per, slots, own)
        lead = chosen.gate.shape if chosen.indexed else chosen.gate.shape[1:]
        tails = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)), tails)
        return new_cache(self.t5, rows, slots, shared), tails

    def decode(
        self,
        ids_RU: jax.Array,
        memory: Memory,
        cache: Any = None,
        start: Any = None,
        *,
        train: bool = False,
    ) -> tuple[jax.Array, Any]:
        """Logits float32 [R, U, V], and the caches with these tokens at the slots from `start`."""
        chosen, tails = memory.experts
        own, own_tails = (None, None) if cache is None else cache
        slots = None if own is None else own[0]["key"].shape[2]
        view = self.decoder.view(ids_RU.shape[1], slots, start)
        x_RUD, own = self.decoder.blocks(
            self.embed(ids_RU), view, memory.layers, memory.mask, own, start, train=train
        )
        if not tails:
            x_RUD = self.decoder.finish(x_RUD, train=train)
            self.sow("intermediates", "decoder_hidden", x_RUD)
            y = chosen.map(self._of_expert(Expert.predict, train), (x_RUD,))
        else:
            finish = self._of_expert(Expert.finish, train)
            y, own_tails = chosen.step(
                lambda params, x, mask, cache, tail: finish(
                    params, x, view, mask, start, cache, tail
                ),
                (x_RUD, memory.mask),
                (own_tails, tails),
            )
            y = self.decoder.finish(y, train=train)
            y = chosen.map(self._of_expert(Expert.predict, train), (), (y,))
        return chosen.project(y, chosen.params["lm_head"]), (own, own_tails)

    def expert_logits(self, ids_BS: jax.Array, mask_BS: jax.Array) -> jax.Array:
        """Head mode "encoder": logits of every expert alone [E, B, S, V]."""
        shared_BSD = self.read(ids_BS, mask_BS)
        routing = self.route(shared_BSD, mask_BS)
        return self._positions(self._dense(routing), shared_BSD, mask_BS, False)

    def embed(self, ids: jax.Array) -> jax.Array:
        """Rows of the shared table, in the config's dtype."""
        return embedding(ids, self.shared).astype(self.t5.dtype)

    def _dense(self, routing: Routing) -> Chosen:
        outputs_E = jnp.arange(self.moe.num_experts)
        hits_BkE = routing.index[..., None] == outputs_E[None, None]
        gate_BE = jnp.sum(jnp.where(hits_BkE, routing.kept_weight[..., None], 0.0), axis=1)
        return Chosen(self.experts, gate_BE, False)

    def _positions(self, chosen: Chosen, x_BSD, mask_BS, train: bool) -> jax.Array:
        """Logits of all experts at the encoder's positions, float32 [E, B, S, V]."""
        if self.moe.moe_architecture == "expert_only":
            y_EBSD = chosen.map(self._of_expert(Expert.read, train), (x_BSD, mask_BS))
        else:
            y_EBSD = chosen.map(self._of_expert(Expert.predict, train), (x_BSD,))
        kernel_EDV = chosen.params["lm_head"].astype(y_EBSD.dtype)
        return jnp.einsum("ebsd,edv->ebsv", y_EBSD, kernel_EDV).astype(jnp.float32)

    def _of_expert(self, method: Callable[..., Any], train: bool | None = None):
        """The method as a function of one expert's parameters."""
        expert = Expert(self.t5, self.moe, parent=None)
        options: dict[str, Any] = {} if train is None else {"train": train}
        if train:
            options["rngs"] = {"dropout": self.make_rng("dropout")}
        return lambda params, *args: expert.apply(
            {"params": params}, *args, method=method, **options
        )

    def _init_experts(self, key: jax.Array) -> Tree:
        expert = Expert(self.t5, self.moe, parent=None)
        x_BSD = jnp.zeros((1, 1, self.t5.d_model), self.t5.dtype)
        keys = jax.random.split(key, self.moe.num_experts)
        return jax.vmap(lambda key: expert.init(key, x_BSD, jnp.ones((1, 1), bool))["params"])(keys)


def limited(routing: Routing, capacity: int) -> Routing:
    """At most `capacity` contexts an expert, all first choices before any second one.

    The gates that are left sum to 1; a context without any keeps its first choice.
    """
    config = CapacityConfig(
        factor=float(routing.num_experts), maximum=capacity, order="choice_major", renormalise=True
    )
    kept = apply_capacity(routing, config)
    lost_B1 = ~jnp.any(kept.keep, axis=-1, keepdims=True)
    first_1k = jnp.arange(kept.index.shape[1])[None] == 0
    rescued_Bk = lost_B1 & first_1k
    return replace(
        kept, keep=kept.keep | rescued_Bk, weight=jnp.where(rescued_Bk, 1.0, kept.weight)
    )
