"""A language model as a folder of two programs that share weights and keys: prompt, next token.

    generator.json      sizes
    prefill, decode     program folders, each complete in itself

`lowering.runtime.generate` continues prompts with them.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from lowering.api import Lowered, lower_graph_of
from lowering.exporter import REPORT, Check, require_ttnn, write_export
from lowering.ir import Arch, Policy, Program
from lowering.runtime.folder import WEIGHTS, Sample
from lowering.runtime.generate import GENERATOR, GENERATOR_SCHEMA, PARTS, Sizes
from lowering.sample import make_sample
from lowering.trace import trace

Functions = Mapping[str, Callable[..., Any]]


def export_generator(
    functions: Functions,
    params: Any,
    state: Any,
    sizes: Sizes,
    folder: str | Path,
    *,
    name: str = "model",
    policy: Policy = "bfloat16",
    arch: Arch = "wormhole_b0",
    check: Check = "auto",
    model: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the programs of a model's first call and of its next ones to `folder`.

    `functions`: "prefill" (params, ids [B, S] int32, mask [B, S] bool: a token, state) and "decode"
    (params, ids [B, 1], mask [B, T]: the slots with tokens, slot [] int32 to write, position [B]
    int32, state), each giving (logits [B, V] of the next token, new state). `state`: a pytree of
    caches [B, M, T, H]. Returns the reports of both by name; other options as `lowering.export`.
    """
    require_ttnn(check)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / GENERATOR).is_file():
        raise ValueError(f"{folder} holds files but no lowered model; choose another folder")
    samples = sample_calls(functions, params, state, sizes)
    lowered = lower_calls(functions, params, state, samples, name=name, policy=policy)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        programs = [lowered[part][arch].program for part in PARTS]
        options = {"check": check, "model": model, "together": programs}
        reports = {
            part: write_export(lowered[part], arch, samples[part], scratch / part, **options)
            for part in PARTS
        }
        _store_once(*(scratch / part / WEIGHTS for part in PARTS))
        head = {"schema": GENERATOR_SCHEMA, "name": name, "sizes": asdict(sizes)}
        (scratch / GENERATOR).write_text(json.dumps(head, indent=1))
        (scratch / REPORT).write_text(json.dumps(reports, indent=1))
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return reports


def _store_once(first: Path, second: Path) -> None:
    """Two equal files become one with two names, where the file system can."""
    spare = second.with_suffix(".link")
    with contextlib.suppress(OSError):
        os.link(first, spare)
        spare.replace(second)


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


def lower_calls(
    functions: Functions,
    params: Any,
    state: Any,
    samples: Mapping[str, Sample],
    *,
    name: str,
    policy: Policy,
) -> dict[str, dict[Arch, Lowered]]:
    """Both programs for both chips; the same weights have the same names in both."""
    graphs = {part: trace(functions[part], params, samples[part].inputs, state) for part in PARTS}
    lowered: dict[str, dict[Arch, Lowered]] = {part: {} for part in PARTS}
    for chip in get_args(Arch):
        first, second = (
            lower_graph_of(graphs[part], name=f"{name}.{part}", policy=policy, arch=chip)
            for part in PARTS
        )
        program = name_weights_alike(first.program, second.program)
        lowered["prefill"][chip] = first
        lowered["decode"][chip] = Lowered(program, second.graph, second.origins)
    return lowered


def name_weights_alike(first: Program, second: Program) -> Program:
    """`second`, each weight called as the equal one of `first`, and no other weight called so."""
    names: dict[str, str] = {}
    taken = {value.name for value in (*first.weights, *second.values().values())}
    for value in second.weights:
        array = second.arrays[value.name]
        same = (
            other.name
            for other in sorted(first.weights, key=lambda other: other.name != value.name)
            if (other.dtype, other.layout, other.shape) == (value.dtype, value.layout, value.shape)
            and np.array_equal(first.arrays[other.name], array)
        )
        found = next((name for name in same if name not in names.values()), None)
        if found is None and value.name in first.arrays:
            fresh = (f"{value.name}.{number}" for number in range(2, len(taken) + 3))
            found = next(candidate for candidate in fresh if candidate not in taken)
        names[value.name] = found or value.name
        taken.add(names[value.name])
    return _renamed(second, names)


def _renamed(program: Program, names: Mapping[str, str]) -> Program:
    def new(name: str) -> str:
        return names.get(name, name)

    ops = tuple(op.replace(inputs=tuple(map(new, op.inputs))) for op in program.ops)
    weights = tuple(
        type(value)(new(value.name), value.shape, value.dtype, value.layout, value.memory)
        for value in program.weights
    )
    arrays = {new(name): array for name, array in program.arrays.items()}
    outputs = tuple(map(new, program.outputs))
    return program.replace(ops=ops, weights=weights, arrays=arrays, outputs=outputs)
