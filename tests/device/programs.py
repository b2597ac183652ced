"""The programs of all five systems in debug size, with the calls that a user makes of them."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from cases import CASES
from chronos_cases import card, programs
from lm_cases import LANGUAGE_MODELS
from lm_runs import parts, reference
from moirai_cases import FORECASTERS, forecaster, sizes_of

from lowering.api import lower_graph_of
from lowering.forecaster import sample_inputs
from lowering.ir import Policy
from lowering.runtime.folder import Sample
from lowering.sample import make_sample
from lowering.trace import trace
from tests.device.runs import Call, Run
from train.lower_moirai import make_card

STEPS = 8  # decode steps after the first call
Maker = Callable[[Policy], Run]


def single(case: str) -> Maker:
    """One call of a function of the parity ladder."""

    def make(policy: Policy) -> Run:
        function, params, inputs = CASES[case]()
        sample = make_sample(function, params, inputs)
        return _one(sample, trace(function, params, inputs), case, policy)

    return make


def moirai(policy: Policy) -> Run:
    """Three sets of series: the forward gives a few tokens of each."""
    (function, variables, inputs), name = forecaster("mixture"), "mixture"
    program = lower_graph_of(
        trace(function, variables, inputs), name=name, policy=policy, arch="wormhole_b0"
    ).program
    card = make_card(FORECASTERS[name][0], sizes_of(name))
    samples = [make_sample(function, variables, sample_inputs(card, seed)) for seed in range(3)]
    calls = [Call(part=name, inputs=one.inputs, expected=one.outputs) for one in samples]
    return Run(programs={name: program}, calls=calls)


def bolt(policy: Policy) -> Run:
    """Patches in, quantiles out."""
    ((function, variables, sample, _),) = programs("bolt").values()
    return _one(sample, trace(function, variables, sample.inputs), "bolt", policy)


def _one(sample: Sample, graph, name: str, policy: Policy) -> Run:
    program = lower_graph_of(graph, name=name, policy=policy, arch="wormhole_b0").program
    call = Call(part="whole", inputs=sample.inputs, expected=sample.outputs)
    return Run(programs={"whole": program}, calls=[call])


def language_model(name: str) -> Maker:
    """A prompt and the steps after it, fed with the tokens that Flax chose.

    Experts are the program's own choice where Flax's was no close one; under bfloat8_b, which moves
    router logits by more than a close call, they are all Flax's.
    """

    def make(policy: Policy) -> Run:
        run, routed = reference(name), LANGUAGE_MODELS[name].moe is not None
        close = ~run.decided | (policy == "bfloat8_b")
        found, calls = parts(name, policy, (close & routed)[: STEPS + 1])
        made = [
            Call(part=part, inputs=inputs, expected=[logits])
            for (part, inputs), logits in zip(calls, run.logits, strict=False)
        ]
        return Run(programs=found, calls=made)

    return make


def chronos(name: str) -> Maker:
    """A context and the steps after it, fed with the tokens that Flax finds likeliest."""

    def make(policy: Policy) -> Run:
        parts = {
            part: lower_graph_of(
                trace(function, variables, sample.inputs, state),
                name=f"{name}/{part}",
                policy=policy,
                arch="wormhole_b0",
            ).program
            for part, (function, variables, sample, state) in programs(name).items()
        }
        return Run(programs=parts, calls=greedy_calls(name))

    return make


@functools.cache
def greedy_calls(name: str) -> list[Call]:
    """The calls with Flax's results."""
    functions = {part: function for part, (function, *_) in programs(name).items()}
    _, variables, sample, state = programs(name)["encode"]
    given = {"mask": sample.inputs["mask"]} | dict(zip(("gate",), sample.outputs[1:], strict=False))
    calls = [Call(part="encode", inputs=sample.inputs, expected=sample.outputs)]
    after = jax.tree.unflatten(jax.tree.structure(state), sample.after.values())
    sizes, step = card(name).sizes, jax.jit(functions["decode"])
    ids = np.full((sizes.batch * sizes.samples, 1), card(name).start, np.int32)
    for slot in range(STEPS):
        inputs = {"ids": ids, **given, "slot": np.int32(slot)}
        with jax.default_matmul_precision("highest"):
            logits_RV, after = step(variables, *inputs.values(), after)
        calls.append(Call(part="decode", inputs=inputs, expected=[np.asarray(logits_RV)]))
        ids = np.argmax(logits_RV, axis=1, keepdims=True).astype(np.int32)
    return calls


PROGRAMS: dict[str, Maker] = {
    **{
        f"MoLE {base}, {router} router": single(f"mole-{base}-{router}")
        for base in ("dlinear", "rlinear", "rmlp")
        for router in ("time", "stats")
    },
    "MoE layer, dense": single("moe-dense-top2"),
    "MoE layer, indexed": single("moe-indexed-4"),
    "MoE LM (mixtral), prefill + 8 steps": language_model("mixtral"),
    "dense LM (llama), prefill + 8 steps": language_model("llama"),
    "MOIRAI-MoE, forward": moirai,
    "Chronos T5, encoder + 8 steps": chronos("t5"),
    "Chronos-MoE, encoder + 8 steps": chronos("shared, then experts"),
    "Chronos-Bolt": bolt,
}
