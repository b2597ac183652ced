"""Continuing prompts: one prefill, then a compiled loop of decoding steps over a static cache.

generator = Generator(config, variables)
generator.generate([[1, 5, 9], [1, 7]], GenerationConfig(max_new_tokens=32)).tokens

Prompts are padded on the left to a length from a short list, so that a new length compiles nothing
within it. A step runs the model on the last tokens and chooses the next ones on the device; the
host asks for many steps at once, or for one at a time when it streams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from moejax.checks import require_positive
from moejax.generation.cpu import KERNELS
from moejax.generation.prompts import Prompts, bucket, pad_left, row_keys
from moejax.generation.sampling import SamplingConfig, mark_seen, sample, seen_tokens
from moejax.generation.substitute import substitute
from moejax.layers.cache import Cache
from moejax.models.moe_lm import CausalLM, LMConfig, LMOutput

Reason = Literal["stop", "length"]
STOPS = 8


@dataclass(frozen=True, kw_only=True)
class GenerationConfig(SamplingConfig):
    """How tokens are chosen, how many at most, and which end a continuation.

    A continuation also ends where the model's context does.
    """

    max_new_tokens: int = 128
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        require_positive("max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True)
class Generated:
    """Each prompt's continuation without its stop token, and why it ended."""

    tokens: list[list[int]]
    finished: list[Reason]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["cache", "tokens", "count", "length", "done", "limit", "keys", "seen"],
    meta_fields=[],
)
@dataclass(frozen=True)
class State:
    """What a step needs and gives. tokens [B, N] int32: `count` tokens of each row so far.

    length [B]: those of them that count, up to a row's end. done [B] bool: the row has ended.
    limit [B]: the tokens that a row may get. keys [B]. seen [B, V] bool, where it is needed.
    """

    cache: Cache | None
    tokens: jax.Array
    count: jax.Array
    length: jax.Array
    done: jax.Array
    limit: jax.Array
    keys: jax.Array
    seen: jax.Array | None


class Generator:
    """A model and its variables, ready to continue prompts; it keeps what it has compiled.

    ValueError for prompts that are empty, reach the end of the context or hold unknown ids.
    """

    def __init__(self, config: LMConfig, variables: Any):
        self.config = config
        self.variables = variables
        self._model = CausalLM(config, lean=True)
        self._kernels = KERNELS if jax.default_backend() == "cpu" else {}
        self._prefill = jax.jit(self._first, static_argnames=("num_slots", "num_new"))
        self._decode = jax.jit(self._next, donate_argnums=1)

    def generate(
        self,
        prompts: Prompts,
        config: GenerationConfig | None = None,
        mask: np.ndarray | None = None,
    ) -> Generated:
        """Continue all prompts: lists of ids, or an array [B, S] with `mask` [B, S], true: a token.

        A row's tokens depend on its prompt and the config alone, not on the other rows; of equal
        prompts, each draws its own.
        """
        run = self.start(prompts, config, mask)
        run.advance(run.config.max_new_tokens)
        return run.result()

    def stream(
        self,
        prompts: Prompts,
        config: GenerationConfig | None = None,
        mask: np.ndarray | None = None,
        *,
        steps: int = 1,
    ) -> Iterator[list[list[int]]]:
        """The same tokens while they come: each row's new ones after every few steps."""
        run = self.start(prompts, config, mask)
        while not run.done:
            yield run.advance(steps)

    def start(
        self,
        prompts: Prompts,
        config: GenerationConfig | None = None,
        mask: np.ndarray | None = None,
    ) -> "Run":
        """A run that stands after its prefill, with the first token of each row chosen."""
        config = config or GenerationConfig()
        ids_BS, mask_BS = pad_left(prompts, mask, self.config.vocab_size, self.config.max_len)
        room_B = self.config.max_len - mask_BS.sum(axis=1)
        num_new = min(config.max_new_tokens, int(room_B.max()))
        knobs = config.knobs()
        # of a length from a short list too; -1 is no token
        spare = np.full(STOPS - len(config.stop_tokens) % STOPS, -1, np.int32)
        stops_K = np.concatenate([np.asarray(config.stop_tokens, np.int32), spare])
        state = self._prefill(
            self.variables,
            ids_BS,
            mask_BS,
            jnp.asarray(np.minimum(room_B, num_new), jnp.int32),
            row_keys(config.seed, ids_BS, mask_BS),
            knobs,
            stops_K,
            num_slots=bucket(ids_BS.shape[1] + num_new),
            num_new=bucket(num_new),
        )
        return Run(config, state, partial(self._decode, self.variables), (knobs, stops_K))

    def _apply(self, options, variables, ids_BS, mask_BS, cache: Cache | None = None) -> LMOutput:
        def apply(variables, ids_BS, mask_BS, cache):
            return self._model.apply(variables, ids_BS, mask_BS, cache=cache, **options)

        return substitute(apply, self._kernels)(variables, ids_BS, mask_BS, cache)

    def _first(
        self, variables, ids_BS, mask_BS, limit_B, keys_B, knobs, stops_K, *, num_slots, num_new
    ) -> State:
        """The prompts through the model, and the first tokens."""
        options = {"cache_size": num_slots, "last_only": True}
        out = self._apply(options, variables, ids_BS, mask_BS)
        seen = None
        if "repetition_penalty" in knobs:
            seen = seen_tokens(ids_BS, mask_BS, self.config.vocab_size)
        state = State(
            cache=out.cache,
            tokens=jnp.zeros((len(ids_BS), num_new), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            length=jnp.zeros(len(ids_BS), jnp.int32),
            done=jnp.zeros(len(ids_BS), bool),
            limit=limit_B,
            keys=keys_B,
            seen=seen,
        )
        return _choose(state, out, knobs, stops_K)

    def _next(self, variables, state: State, knobs, stops_K, until) -> State:
        """Steps until `until` tokens are there or every row is done."""

        def step(state: State) -> State:
            token_B1 = lax.dynamic_slice_in_dim(state.tokens, state.count - 1, 1, axis=1)
            live_B1 = ~state.done[:, None]
            out = self._apply({}, variables, token_B1, live_B1, state.cache)
            return _choose(state, out, knobs, stops_K)

        return lax.while_loop(
            lambda state: (state.count < until) & ~jnp.all(state.done), step, state
        )


def _choose(state: State, out: LMOutput, knobs, stops_K) -> State:
    """The state with one more token of each row."""
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    token_B = sample(out.logits[:, -1], keys_B, knobs, state.seen)
    stopped_B = jnp.isin(token_B, stops_K)
    count = state.count + 1
    return replace(
        state,
        cache=out.cache,
        tokens=lax.dynamic_update_slice(state.tokens, token_B[:, None], (0, state.count)),
        count=count,
        length=state.length + ~(state.done | stopped_B),
        done=state.done | stopped_B | (count >= state.limit),
        seen=None if state.seen is None else mark_seen(state.seen, token_B),
    )


class Run:
    """Prompts that are being continued, some steps at a time."""

    def __init__(self, config: GenerationConfig, state: State, decode, options: tuple[Any, ...]):
        self.config = config
        self._state, self._decode, self._options = state, decode, options
        self._asked = 0
        self._given = np.zeros(len(state.length), int)

    @property
    def done(self) -> bool:
        """Whether every row has ended and all of its tokens were given out."""
        return self._asked > 0 and bool(np.all(self._state.done))

    def wait(self) -> None:
        """Until what was asked for is computed."""
        jax.block_until_ready(self._state)

    def advance(self, steps: int) -> list[list[int]]:
        """Each row's new tokens after at most so many steps."""
        require_positive("steps", steps)
        self._asked += steps
        if self._asked > 1:  # the first token came with the prefill
            until = jnp.asarray(min(self._asked, self.config.max_new_tokens), jnp.int32)
            self._state = self._decode(self._state, *self._options, until)
        tokens_BN, length_B = np.asarray(self._state.tokens), np.asarray(self._state.length)
        new = [
            row[start:end].tolist()
            for row, start, end in zip(tokens_BN, self._given, length_B, strict=True)
        ]
        self._given = length_B.copy()
        return new

    def stop(self, rows: Sequence[bool]) -> None:
        """End these rows, for a reason of the caller's own."""
        self._state = replace(self._state, done=self._state.done | jnp.asarray(rows, bool))

    def result(self) -> Generated:
        """All tokens so far."""
        tokens_BN, length_B = np.asarray(self._state.tokens), np.asarray(self._state.length)
        return Generated(
            [row[:end].tolist() for row, end in zip(tokens_BN, length_B, strict=True)],
            ["length" if full else "stop" for full in length_B >= np.asarray(self._state.limit)],
        )
