"""A language model's greedy continuation, by Flax and by its lowered programs, step by step.

Routing takes part in both: what Flax chose, whether it was a close call, and the programs with
Flax's choices in place of their own.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from lm_cases import LANGUAGE_MODELS, random_variables
from routed import routed_by

from lowering.api import lower_graph_of
from lowering.graph import Graph
from lowering.ir import Arch, Policy, Program
from lowering.runtime.generate import Sizes
from lowering.trace import trace
from moejax.moe.assignment import Routing
from moejax.moe.layer import MoELayer
from moejax.moe.routing import route
from tests.device.runs import Call, Run
from train.lower_lm import empty_state, lm_functions
from train.pad_heads import pad_heads

STEPS = 32
SIZES = Sizes(batch=1, prompt=32, slots=64, vocab=96)
PROMPT = 20
CLOSE = 0.05  # of a router logit: what bfloat16 may make of it
PARTS = ("prefill", "decode")
DECODE = ("ids", "mask", "slot", "position")  # the order of the arguments
Choices = list[tuple[jax.Array, jax.Array]]  # index and weight, a pair for each MoE layer


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Flax: inputs of every call, logits [33, B, V], choices by call, and calls without a close
    one.
    """

    inputs: list[dict[str, np.ndarray]]
    logits: np.ndarray
    choices: list[list[tuple[np.ndarray, np.ndarray]]]
    decided: np.ndarray


Model = tuple[Any, Mapping[str, Callable[..., Any]], Any]


@functools.cache
def model(name: str) -> Model:
    """Variables, functions and state."""
    config = LANGUAGE_MODELS[name]
    variables = random_variables(config)
    return variables, lm_functions(config), empty_state(config, variables, SIZES)


@functools.cache
def lowered_model(name: str) -> Model:
    """The same, as it is lowered: with heads of whole tiles."""
    config, variables = pad_heads(LANGUAGE_MODELS[name], model(name)[0])
    return variables, lm_functions(config), empty_state(config, variables, SIZES)


@functools.cache
def reference(name: str) -> Reference:
    """The prompt and 32 greedy steps after it, in one compiled function."""
    variables, functions, state = model(name)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    ids = np.zeros((1, SIZES.prompt), np.int32)
    ids[:, -PROMPT:] = np.random.default_rng(1).integers(0, SIZES.vocab, PROMPT)
    first = {"ids": ids, "mask": np.arange(SIZES.prompt)[None] >= SIZES.prompt - PROMPT}
    slots = np.arange(SIZES.slots)[None]
    began = SIZES.prompt - PROMPT

    def step(carry, index):
        token, state = carry
        slot = SIZES.prompt + index
        mask = (slots >= began) & (slots < slot)
        position = (PROMPT + index)[None].astype(jnp.int32)
        inputs = {"ids": token[:, None], "mask": mask, "slot": slot, "position": position}
        (logits, state), seen = recorded(functions["decode"], variables, *inputs.values(), state)
        return (_greedy(logits), state), (inputs, logits, seen)

    @jax.jit
    def run(ids, mask, state):
        (logits, state), seen = recorded(functions["prefill"], variables, ids, mask, state)
        _, rest = jax.lax.scan(step, (_greedy(logits), state), jnp.arange(STEPS, dtype=jnp.int32))
        return (logits, seen), rest

    (logits, (choices, close)), rest = jax.tree.map(np.asarray, run(*first.values(), state))
    inputs, more, (later, later_close) = rest
    each = range(STEPS)
    return Reference(
        inputs=[first, *({name: inputs[name][i] for name in DECODE} for i in each)],
        logits=np.stack([logits, *more]),
        choices=[choices, *(jax.tree.map(lambda leaf, i=i: leaf[i], later) for i in each)],
        decided=~np.array([close.any(), *later_close.reshape(STEPS, -1).any(axis=1)]),
    )


def _greedy(logits: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def recorded(function, *arguments) -> tuple[Any, tuple[Choices, jax.Array]]:
    """The function's result, its routing, and whether a token's experts hung by a thread."""
    choices: Choices = []
    close = [jnp.zeros((), bool)]

    def record(run, args, kwargs, context):
        result = run(*args, **kwargs)
        if isinstance(context.module, MoELayer) and context.method_name == "route":
            choices.append((result.index, result.weight))
            close.append(_is_close(context.module, result))
        return result

    with nn.intercept_methods(record):
        result = function(*arguments)
    return result, (choices, jnp.any(jnp.stack(close)))


def _is_close(layer: MoELayer, routing: Routing) -> jax.Array:
    """Whether other experts are chosen when the logits move a little."""
    config = layer.config.routing
    noise = np.random.default_rng(0).uniform(-CLOSE, CLOSE, (16, *routing.logits.shape))
    options = {"bias_M": layer.router_bias.value} if config.has_bias else {}

    def chosen(logits):
        return jnp.sort(route(logits, config, **options).index, axis=-1)

    moved = jax.vmap(chosen)(routing.logits[None] + noise.astype(np.float32))
    live = routing.keep[:, :1]  # padding may go where it likes
    return jnp.any((moved != jnp.sort(routing.index, axis=-1)[None]) & live[None])


@functools.cache
def graphs(name: str, *, injected: bool = False) -> dict[str, Graph]:
    """Both functions traced; `injected`: with the choices as further inputs."""
    variables, functions, state = lowered_model(name)
    run = reference(name)
    found = {}
    for part, index in zip(PARTS, (0, 1), strict=True):
        inputs, function = dict(run.inputs[index]), functions[part]
        if injected:
            inputs |= choice_inputs(run, index)
            function = with_choices(functions[part], len(run.inputs[index]))
        found[part] = trace(function, variables, inputs, state)
    return found


def choice_inputs(run: Reference, index: int) -> dict[str, np.ndarray]:
    """The choices of a call as named inputs."""
    return {
        f"{kind}_{layer}": array
        for layer, pair in enumerate(run.choices[index])
        for kind, array in zip(("index", "weight"), pair, strict=True)
    }


def with_choices(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """The function with choices as arguments between its first `count` inputs and its state."""

    def call(variables, *arguments):
        *given, state = arguments
        pairs = iter(zip(given[count::2], given[count + 1 :: 2], strict=True))
        with routed_by(pairs):
            return function(variables, *given[:count], state)

    return call


def programs(
    name: str, policy: Policy, arch: Arch = "wormhole_b0", *, injected: bool = False
) -> list[Program]:
    """Prefill and decode."""
    return [
        lower_graph_of(graph, name=f"{name}/{part}/{policy}", policy=policy, arch=arch).program
        for part, graph in graphs(name, injected=injected).items()
    ]


def greedy_run(name: str, policy: Policy, given: np.ndarray) -> Run:
    """The calls, each fed with the tokens that Flax chose.

    `given` [33 or fewer calls]: those that take Flax's experts in place of their own.
    """
    run = reference(name)
    found: dict[str, Program] = {}
    calls = []
    for index, injected in enumerate(map(bool, given)):
        place = min(index, 1)
        part = f"{PARTS[place]}, choices given" if injected else PARTS[place]
        if part not in found:
            found[part] = programs(name, policy, injected=injected)[place]
        inputs = run.inputs[index] | (choice_inputs(run, index) if injected else {})
        calls.append(Call(part=part, inputs=inputs, expected=[run.logits[index]]))
    return Run(programs=found, calls=calls)
