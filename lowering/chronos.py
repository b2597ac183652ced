"""A Chronos model as a folder that forecasts: its programs, and what the host must know of them.

    forecaster.json     sizes, bins, sampling
    encode, decode      program folders; or one program in the folder itself, where experts work on
                        the encoder's positions, and for Chronos-Bolt

`lowering.runtime.chronos` and `lowering.runtime.bolt` forecast with it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowering.exporter import export
from lowering.pair import Functions, export_pair
from lowering.runtime.bolt import BoltCard, pack
from lowering.runtime.chronos import DECODE, ENCODE, ChronosCard
from lowering.runtime.folder import Sample
from lowering.runtime.head import FORECASTER
from lowering.sample import make_sample

STEPS = 3  # of the sample before the one that is kept


def export_chronos(
    functions: Functions,
    params: Any,
    state: Any,
    card: ChronosCard,
    folder: str | Path,
    *,
    name: str = "model",
    **options: Any,
) -> dict[str, Any]:
    """Write the programs for the card's sizes; returns their reports by name.

    `functions`: "encode" (params, ids [B, S] int32, mask [B, S] bool: a token, state) giving
    ((states [B, S, D], and if `card.routed` gate [B, E]), new state), and "decode" (params, ids
    [R, 1], mask [B, S], gate if routed, slot [] int32 to write, state) giving (logits [R, V], new
    state). `state`: a pytree of [rows, heads, slots, H]. Options as those of `lowering.export`.
    """
    samples = sample_calls(functions, params, state, card)
    head = FORECASTER, card.to_json()
    return export_pair(functions, params, state, samples, head, folder, name=name, **options)


def export_single(
    function: Callable[..., Any],
    params: Any,
    inputs: dict[str, np.ndarray],
    card: ChronosCard | BoltCard,
    folder: str | Path,
    **options: Any,
) -> dict[str, Any]:
    """Write the one program of `function(params, *inputs)`; returns its report."""
    report = export(function, params, inputs, folder, **options)
    (Path(folder) / FORECASTER).write_text(json.dumps(card.to_json(), indent=1))
    return report


def sample_calls(
    functions: Functions, params: Any, state: Any, card: ChronosCard
) -> dict[str, Sample]:
    """Contexts of seeded random walks, and a token some steps into their forecast."""
    inputs = sample_contexts(card)
    encode = make_sample(functions[ENCODE], params, inputs, state)
    after = jax.tree.unflatten(jax.tree.structure(state), encode.after.values())
    given = {"mask": inputs["mask"]} | dict(zip(("gate",), encode.outputs[1:], strict=False))
    rows = card.sizes.batch * card.sizes.samples
    ids = np.full((rows, 1), card.start, np.int32)
    step = jax.jit(functions[DECODE])
    for slot in range(min(STEPS, card.sizes.horizon - 1)):
        logits_RV, after = step(params, ids, *given.values(), np.int32(slot), after)
        ids = np.argsort(-np.asarray(logits_RV), axis=1)[:, slot : slot + 1].astype(np.int32)
    slot = np.int32(min(STEPS, card.sizes.horizon - 1))
    decode = make_sample(functions[DECODE], params, {"ids": ids, **given, "slot": slot}, after)
    return {ENCODE: encode, DECODE: decode}


def sample_contexts(card: ChronosCard, seed: int = 0) -> dict[str, np.ndarray]:
    """ids int32 and mask bool [B, S] of walks with gaps; the first one is short."""
    sizes, rng = card.sizes, np.random.default_rng(seed)
    ids, mask, _ = card.bins.context(walks(rng, sizes.batch, sizes.context), sizes.tokens)
    return {"ids": ids, "mask": mask}


def sample_patches(card: BoltCard, seed: int = 0) -> dict[str, np.ndarray]:
    """The inputs of such walks for a Chronos-Bolt."""
    rng = np.random.default_rng(seed)
    return pack(walks(rng, card.batch, card.context).astype(np.float32), card)[0]


def walks(rng: np.random.Generator, rows: int, steps: int) -> np.ndarray:
    """[rows, steps] with missing values; the first row is half as long."""
    values = 5 + np.cumsum(rng.standard_normal((rows, steps)), axis=1)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[0, : steps // 2] = np.nan
    return values
