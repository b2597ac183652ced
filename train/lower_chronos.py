"""Lower a Chronos model to a folder that forecasts: T5, mixture or Bolt."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from lowering.chronos import export_chronos, export_single, sample_contexts, sample_patches
from lowering.exporter import Check
from lowering.ir import TILE, Arch, Policy
from lowering.rules.state import MOST_SEQUENCES
from lowering.runtime.bolt import BoltCard
from lowering.runtime.chronos import DECODE, ENCODE, ChronosCard, ChronosSizes
from lowering.runtime.sampling import Sampling
from moejax.forecasting.chronos.tokenizer import MeanScaleUniformBins
from moejax.layers.cache import kv_update
from moejax.models.chronos import ChronosModelConfig
from moejax.models.chronos_bolt import BoltConfig, ChronosBolt
from moejax.models.chronos_moe import Chosen, own_layers, shared_layers
from moejax.models.t5 import Memory, T5Config, new_cache
from train.chronos_start import load_any
from train.moirai_start import is_workdir
from train.workdir import Workdir

Config = ChronosModelConfig | BoltConfig


@dataclass(frozen=True, kw_only=True)
class ChronosSource:
    """A model with its variables, as they go to the device: float32 until a policy says else."""

    name: str
    config: Config
    variables: Any


def find_chronos(source: str) -> ChronosSource | None:
    """The model of a checkpoint's folder or of a workdir; None for another system's."""
    folder = Path(source)
    if is_workdir(folder):
        if not isinstance(Workdir(folder).read_config().model, ChronosModelConfig):
            return None
    elif not _is_checkpoint(folder):
        return None
    config, variables = load_any(folder)
    if not isinstance(config, Config):
        raise ValueError(f"{source} holds a {type(config).__name__}, which is not lowered")
    return ChronosSource(name=folder.resolve().name, config=config, variables=variables)


def _is_checkpoint(folder: Path) -> bool:
    """Whether its config.json describes a Chronos."""
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and "chronos_config" in fields


def lower_chronos(
    source: ChronosSource,
    out: str | Path,
    *,
    arch: Arch = "wormhole_b0",
    policy: Policy = "bfloat16",
    check: Check = "auto",
    **sizes: int | None,
) -> dict[str, Any]:
    """Write the programs for contexts of a fixed size; returns their reports by name.

    `batch` contexts (1), `context` steps (all that the model reads), `samples` of each (as the
    checkpoint has it). ValueError for sizes that do not fit.
    """
    config, variables = in_whole_heads(source.config, source.variables)
    options: dict[str, Any] = {
        "name": source.name,
        "arch": arch,
        "policy": policy,
        "check": check,
        "model": asdict(source.config),
    }
    if isinstance(config, BoltConfig):
        return {source.name: _lower_bolt(config, variables, out, options, **sizes)}
    card = make_card(config, **sizes)
    if card.positions:
        inputs = sample_contexts(card)
        function = positions(config, card.sizes.horizon)
        return {source.name: export_single(function, variables, inputs, card, out, **options)}
    functions, state = chronos_functions(config), empty_state(config, card.sizes)
    return export_chronos(functions, variables, state, card, out, **options)


def make_card(
    config: ChronosModelConfig,
    *,
    batch: int | None = None,
    context: int | None = None,
    samples: int | None = None,
) -> ChronosCard:
    """Sizes, bins and sampling; ValueError for sizes that do not fit."""
    chronos, t5 = config.chronos, config.t5
    found = {
        "batch": 1 if batch is None else batch,
        "context": chronos.context_length if context is None else context,
        "samples": chronos.num_samples if samples is None else samples,
    }
    rows = found["batch"] * found["samples"]
    if min(found.values()) < 1 or found["context"] > chronos.context_length:
        raise ValueError(
            f"{found} do not fit; each must be at least 1, and context at most"
            f" {chronos.context_length}"
        )
    if rows > MOST_SEQUENCES:
        raise ValueError(
            f"{found['batch']} contexts of {found['samples']} samples are {rows} rows; a program"
            f" holds up to {MOST_SEQUENCES}, and more samples are drawn in several runs"
        )
    places = chronos.use_moe and chronos.head_mode == "encoder"
    ends = chronos.use_eos_token
    tokens = found["context"] + ends
    bins = MeanScaleUniformBins(chronos)
    return ChronosCard(
        sizes=ChronosSizes(
            **found,
            # an average over all positions, as there, must not see more of them
            tokens=tokens if places else -(-tokens // TILE) * TILE,
            horizon=chronos.prediction_length,
            slots=-(-chronos.prediction_length // TILE) * TILE,
        ),
        boundaries=tuple(map(float, bins.boundaries)),
        centers=tuple(map(float, bins.centers)),
        special=chronos.n_special_tokens,
        pad=chronos.pad_token_id,
        start=t5.decoder_start_token_id,
        end=chronos.eos_token_id,
        ends_context=ends,
        routed=chronos.use_moe,
        positions=places,
        sampling=Sampling(
            temperature=chronos.temperature, top_k=chronos.top_k, top_p=chronos.top_p
        ),
    )


def chronos_functions(config: ChronosModelConfig) -> dict[str, Any]:
    """The model's calls as `lowering.chronos.export_chronos` takes them.

    Every expert works on every row; the gates of those that were not chosen are 0.
    """
    config = _in_float32(config)
    module: Any = config.module()
    routed = config.chronos.use_moe

    def encode(variables, ids_BS, mask_BS, state):
        found, sown = module.apply(
            variables, ids_BS, mask_BS, method="prepare", mutable="intermediates"
        )
        states_BSD = _read_by_decoder(sown["intermediates"], routed)
        if routed:
            memory, _ = found
            chosen, tails = memory.experts
            outputs, new = (states_BSD, chosen.gate), (memory.layers, _unstacked(tails))
        else:
            outputs, new = (states_BSD,), found.layers
        contexts, cache = state
        contexts = jax.tree.map(lambda leaf, rows: kv_update(leaf, rows, 0), contexts, new)
        return outputs, (contexts, cache)

    def decode(variables, ids_R1, mask_BS, *rest):
        *gate, slot, (contexts, cache) = rest
        layers, experts = contexts, None
        if routed:
            layers, tails = contexts
            experts = OneByOne(variables["params"]["experts"], gate[0], False), tails
        memory = Memory(layers, mask_BS[:, None, None, :], experts)
        logits_R1V, cache = module.apply(variables, ids_R1, memory, cache, slot, method="decode")
        return logits_R1V[:, 0], (contexts, cache)

    return {ENCODE: encode, DECODE: decode}


class OneByOne(Chosen):
    """All experts; each writes into caches of its own, which a device can update in place."""

    def step(self, function: Callable[..., Any], shared: Any, own: Any) -> Any:
        """y [E, R, ...] and a tuple of caches, as `own` is of tuples."""
        each = zip(_unstacked(self.params), *own, strict=True)
        y, caches = zip(*(function(params, *shared, *rest) for params, *rest in each), strict=True)
        return jnp.stack(y), caches


def _unstacked(experts: Any) -> tuple[Any, ...]:
    """What each expert has, of leaves [E, ...]; () of none."""
    leaves, structure = jax.tree.flatten(experts)
    return tuple(jax.tree.unflatten(structure, own) for own in zip(*leaves, strict=True))


def _read_by_decoder(sown: Any, routed: bool) -> jax.Array:
    """What the decoder reads of contexts [B, S, D]."""
    return sown["states"][0] if routed else sown["encoder"]["hidden"][-1]


def positions(config: ChronosModelConfig, steps: int) -> Any:
    """Logits [B, steps, V] at the encoder's first positions, of ids and mask."""
    module: Any = _in_float32(config).module()

    def logits(variables, ids_BS, mask_BS):
        return module.apply(variables, ids_BS, mask_BS).logits[:, :steps]

    return logits


def _in_float32(config: ChronosModelConfig) -> ChronosModelConfig:
    return replace(
        config,
        t5=replace(config.t5, dtype="float32"),
        chronos=replace(config.chronos, expert_dispatch="dense"),
    )


def empty_state(config: ChronosModelConfig, sizes: ChronosSizes) -> Any:
    """(keys and values of the contexts, of the rows' tokens) before a forecast, as shapes.

    Of a mixture both are (of the shared blocks, a tuple of each expert's own).
    """
    t5, moe = replace(config.t5, dtype="float32"), config.chronos

    def empty(rows: int, slots: int):
        if not moe.use_moe:
            return new_cache(t5, rows, slots, t5.num_decoder_layers)
        own = own_layers(t5, moe)
        experts = range(moe.num_experts if own else 0)
        tails = tuple(new_cache(t5, rows, slots, own) for _ in experts)
        return new_cache(t5, rows, slots, shared_layers(t5, moe)), tails

    def both():
        rows = sizes.batch * sizes.samples
        return empty(sizes.batch, sizes.tokens), empty(rows, sizes.slots)

    return jax.eval_shape(both)


def in_whole_heads(config: Config, variables: Any) -> tuple[Config, Any]:
    """An equal model in float32 whose attention heads have whole tiles: zeros added to each.

    Scores are not scaled by the width, so that zeros change nothing.
    """
    t5 = config.t5
    wide = -(-t5.d_kv // TILE) * TILE
    flat: dict[Any, Any] = flatten_dict(
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), dict(variables))
    )
    for path, leaf in flat.items():
        if path[-2] in ("attention", "cross"):
            flat[path] = _widened(leaf, t5, wide, axis=-2 if path[-1] == "output" else -1)
    return replace(config, t5=replace(t5, d_kv=wide)), unflatten_dict(flat)


def _widened(kernel: np.ndarray, t5: T5Config, wide: int, axis: int) -> np.ndarray:
    """[.., N * H, ..] -> [.., N * wide, ..]."""
    heads = np.moveaxis(kernel, axis, -1)
    heads = heads.reshape(*heads.shape[:-1], t5.num_heads, t5.d_kv)
    padding = [(0, 0)] * (heads.ndim - 1) + [(0, wide - t5.d_kv)]
    heads = np.pad(heads, padding)
    return np.moveaxis(heads.reshape(*heads.shape[:-2], -1), -1, axis)


def _lower_bolt(
    config: BoltConfig,
    variables: Any,
    out: str | Path,
    options: dict[str, Any],
    **sizes: int | None,
) -> dict[str, Any]:
    card = make_bolt_card(config, **sizes)
    inputs = sample_patches(card)
    return export_single(bolt_function(config), variables, inputs, card, out, **options)


def make_bolt_card(
    config: BoltConfig,
    *,
    batch: int | None = None,
    context: int | None = None,
    samples: int | None = None,
) -> BoltCard:
    """Sizes of a program; ValueError for sizes that do not fit."""
    rows, steps = 1 if batch is None else batch, context or config.context_length
    if samples is not None:
        raise ValueError("Chronos-Bolt draws no samples; leave samples out")
    if rows < 1 or not config.input_patch_size <= steps <= config.context_length:
        raise ValueError(
            f"batch is {rows} and context {steps}; batch must be at least 1, context from"
            f" {config.input_patch_size} to {config.context_length}"
        )
    return BoltCard(
        batch=rows,
        context=steps,
        horizon=config.prediction_length,
        patch=config.input_patch_size,
        stride=config.input_patch_stride,
        levels=config.quantiles,
    )


def bolt_function(config: BoltConfig) -> Any:
    """Scaled quantiles [B, Q, H] of patches, what is there of them, and which hold a value."""
    module = ChronosBolt(replace(config, t5=replace(config.t5, dtype="float32")))

    def quantiles(variables, patches_BSP, there_BSP, mask_BS):
        return module.apply(variables, patches_BSP, there_BSP, mask_BS, method="from_patches")

    return quantiles
