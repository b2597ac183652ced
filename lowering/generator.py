"""A language model as a folder of two programs that share weights and keys: prompt, next token.

    generator.json      sizes
    prefill, decode     program folders, each complete in itself

`lowering.runtime.generate` continues prompts with them.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowering.pair import Functions, export_pair
from lowering.runtime.folder import Sample
from lowering.runtime.generate import GENERATOR, GENERATOR_SCHEMA, PARTS, Sizes
from lowering.sample import make_sample


def export_generator(
    functions: Functions,
    params: Any,
    state: Any,
    sizes: Sizes,
    folder: str | Path,
    *,
    name: str = "model",
    **options: Any,
) -> dict[str, Any]:
    """Write the programs of a model's first call and of its next ones to `folder`.

    `functions`: "prefill" (params, ids [B, S] int32, mask [B, S] bool: a token, state) and "decode"
    (params, ids [B, 1], mask [B, T]: the slots with tokens, slot [] int32 to write, position [B]
    int32, state), each giving (logits [B, V] of the next token, new state). `state`: a pytree of
    caches [B, M, T, H]. Returns the reports of both by name; options as those of `lowering.export`.
    """
    head = {"schema": GENERATOR_SCHEMA, "name": name, "sizes": asdict(sizes)}
    return export_pair(
        {part: functions[part] for part in PARTS},
        params,
        state,
        sample_calls(functions, params, state, sizes),
        (GENERATOR, head),
        folder,
        name=name,
        **options,
    )


def sample_calls(functions: Functions, params: Any, state: Any, sizes: Sizes) -> dict[str, Sample]:
    """Prompts of seeded tokens, and the token that follows them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, sizes.vocab, (sizes.batch, sizes.prompt)).astype(np.int32)
    starts = rng.integers(0, -(-sizes.prompt // 2), (sizes.batch, 1))
    mask = np.arange(sizes.prompt) >= starts
    prefill = make_sample(functions["prefill"], params, {"ids": ids, "mask": mask}, state)
    slots = np.zeros((sizes.batch, sizes.slots), bool)
    slots[:, : sizes.prompt] = mask
    inputs = {
        "ids": np.argmax(prefill.outputs[0], axis=-1)[:, None].astype(np.int32),
        "mask": slots,
        "slot": np.int32(sizes.prompt),
        "position": mask.sum(axis=1).astype(np.int32),
    }
    after = jax.tree.unflatten(jax.tree.structure(state), prefill.after.values())
    return {
        "prefill": prefill,
        "decode": make_sample(functions["decode"], params, inputs, after),
    }
