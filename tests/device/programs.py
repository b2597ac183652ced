"""The programs of all five systems in debug size, with the calls that a user makes of them."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from cases import CASES
from chronos_cases import card, cases, lowered
from lm_cases import LANGUAGE_MODELS
from lm_runs import greedy_run, reference
from moirai_cases import FORECASTERS, forecaster, sizes_of

from lowering import lower
from lowering.forecaster import sample_inputs
from lowering.ir import Policy, Program
from lowering.runtime.folder import Sample
from lowering.sample import make_sample
from tests.device.runs import Call, Run
from train.lower_moirai import make_card

STEPS = 8  # decode steps after the first call
Maker = Callable[[Policy], Run]


def single(case: str) -> Maker:
    """One call of a function of the parity ladder."""

    def make(policy: Policy) -> Run:
        function, params, inputs = CASES[case]()
        sample = make_sample(function, params, inputs)
        return _one(lower(function, params, inputs, policy=policy), sample)

    return make


def moirai(policy: Policy) -> Run:
    """Three sets of series: the forward gives a few tokens of each."""
    name = "mixture"
    function, variables, inputs = forecaster(name)
    card = make_card(FORECASTERS[name][0], sizes_of(name))
    samples = [make_sample(function, variables, sample_inputs(card, seed)) for seed in range(3)]
    return _one(lower(function, variables, inputs, policy=policy), *samples)


def bolt(policy: Policy) -> Run:
    """Patches in, quantiles out."""
    return _one(lowered("bolt", policy)["bolt"], cases("bolt")["bolt"][2])


def _one(program: Program, *samples: Sample) -> Run:
    calls = [Call(part="whole", inputs=one.inputs, expected=one.outputs) for one in samples]
    return Run(programs={"whole": program}, calls=calls)


def language_model(name: str) -> Maker:
    """A prompt and the steps after it.

    Experts are the program's own choice where Flax's was no close one; under bfloat8_b, which moves
    router logits by more than a close call, they are all Flax's.
    """
    routed = LANGUAGE_MODELS[name].moe is not None

    def make(policy: Policy) -> Run:
        close = ~reference(name).decided | (policy == "bfloat8_b")
        return greedy_run(name, policy, (close & routed)[: STEPS + 1])

    return make


def chronos(name: str) -> Maker:
    """A context and the steps after it, fed with the tokens that Flax finds likeliest."""
    return lambda policy: Run(programs=lowered(name, policy), calls=greedy_calls(name))


@functools.cache
def greedy_calls(name: str) -> list[Call]:
    """The calls with Flax's results."""
    functions = {part: function for part, (function, *_) in cases(name).items()}
    _, variables, sample, state = cases(name)["encode"]
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
