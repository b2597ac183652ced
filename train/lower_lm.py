"""Lower a language model to two ttnn programs, for a prompt and for each token after it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lowering.exporter import Check
from lowering.generator import export_generator
from lowering.ir import TILE, Arch, Policy
from lowering.runtime.generate import Sizes
from moejax.interop.lm.load import load_lm
from moejax.layers.cache import Cache, kv_update
from moejax.models.moe_lm import CausalLM, LMConfig
from moejax.moe.dispatch import Implementation
from train.api import LoadedRun, load_run
from train.lm_task import model_variables
from train.pad_heads import pad_heads
from train.workdir import Workdir

DEFAULT_PROMPT = 128


@dataclass(frozen=True, kw_only=True)
class LMSource:
    """A model with its variables, as they go to the device: float32 until a policy says else."""

    name: str
    config: LMConfig
    variables: Any


def find_lm(source: str) -> LMSource | None:
    """The language model of a checkpoint's folder or of a workdir; None for another system's."""
    if is_checkpoint(source):
        return from_checkpoint(source)
    if not Path(source).is_dir():
        return None
    language = isinstance(Workdir(source).read_config().model, LMConfig)
    return from_lm_run(load_run(source)) if language else None


def is_checkpoint(source: str | Path) -> bool:
    """Whether a folder is laid out like a published model."""
    folder = Path(source)
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors*"))


def from_checkpoint(folder: str | Path) -> LMSource:
    """The model of a published checkpoint."""
    config, variables = load_lm(folder, dtype="float32")
    return LMSource(name=Path(folder).resolve().name, config=config, variables=variables)


def from_lm_run(run: LoadedRun) -> LMSource:
    """The best parameters of a trained run."""
    config = replace(run.config.model, dtype="float32")
    return LMSource(name=run.config.recipe, config=config, variables=model_variables(run.params))


def lower_lm(
    source: LMSource,
    out: str | Path,
    *,
    arch: Arch = "wormhole_b0",
    policy: Policy = "bfloat16",
    check: Check = "auto",
    batch: int = 1,
    prompt: int | None = None,
    slots: int | None = None,
) -> dict[str, Any]:
    """Write the programs for `batch` prompts of up to `prompt` tokens, `slots` with what follows.

    Returns the reports of both, "prefill" and "decode". ValueError for sizes that do not fit.
    """
    sizes = choose_sizes(source.config, batch, prompt, slots)
    config = fixed_positions(source.config, sizes)
    config, variables = pad_heads(config, source.variables)
    return export_generator(
        lm_functions(config),
        variables,
        empty_state(config, variables, sizes),
        sizes,
        out,
        name=source.name,
        policy=policy,
        arch=arch,
        check=check,
        model=asdict(source.config),
    )


def choose_sizes(config: LMConfig, batch: int, prompt: int | None, slots: int | None) -> Sizes:
    """Sizes of the programs, in whole tiles; half of the slots are for the prompt by default."""
    longest = config.max_len // TILE * TILE
    if prompt is None:
        prompt = min(DEFAULT_PROMPT, max(TILE, longest // 2 // TILE * TILE))
    slots = min(2 * prompt, longest) if slots is None else slots
    if not TILE <= prompt <= slots <= longest or prompt % TILE or slots % TILE or batch < 1:
        raise ValueError(
            f"batch is {batch}, prompt {prompt} and slots {slots}; prompt and slots must be"
            f" multiples of {TILE}, {TILE} <= prompt <= slots <= {longest} (the model's context)"
        )
    return Sizes(batch=batch, prompt=prompt, slots=slots, vocab=config.vocab_size)


def fixed_positions(config: LMConfig, sizes: Sizes) -> LMConfig:
    """The model with angles that are known for every position: tables, on the device.

    ValueError where they would depend on how long the text has become.
    """
    rope = config.attention.rope
    if rope is None or rope.kind not in ("dynamic", "longrope"):
        return config
    if rope.kind == "dynamic" and sizes.slots <= (rope.original_max_len or 0):
        attention = replace(config.attention, rope=replace(rope, kind="default"))
        return replace(config, attention=attention)
    raise ValueError(
        f"rope of kind {rope.kind!r} changes the angles as the text grows, which no table holds;"
        " choose slots of at most original_max_len with 'dynamic', or another kind"
    )


def lm_functions(config: LMConfig) -> dict[str, Callable[..., Any]]:
    """The model's calls as `lowering.generator.export_generator` takes them.

    A prompt goes to all experts, a single token to those that are chosen.
    """
    first, following = (CausalLM(_dispatched(config, how)) for how in ("dense", "indexed"))

    def prefill(variables, ids_BS, mask_BS, state):
        out: Any = first.apply(
            variables, ids_BS, mask_BS, cache_size=ids_BS.shape[1], last_only=True
        )
        rows = out.cache.layers
        return out.logits[:, 0], jax.tree.map(lambda old, new: kv_update(old, new, 0), state, rows)

    def decode(variables, ids_B1, mask_BT, slot, position_B, state):
        cache = Cache(state, mask_BT, slot, position_B)
        out: Any = following.apply(variables, ids_B1, cache=cache)
        return out.logits[:, 0], out.cache.layers

    return {"prefill": prefill, "decode": decode}


def _dispatched(config: LMConfig, how: Implementation) -> LMConfig:
    if config.moe is None:
        return config
    return replace(config, moe=replace(config.moe, dispatch=how, router="xla"))


def empty_state(config: LMConfig, variables: Any, sizes: Sizes) -> Any:
    """The caches before a prompt, as shapes and dtypes."""
    ids = jax.ShapeDtypeStruct((sizes.batch, 1), jnp.int32)
    model = CausalLM(_dispatched(config, "dense"))
    out = jax.eval_shape(
        lambda variables, ids: model.apply(variables, ids, cache_size=sizes.slots), variables, ids
    )
    return out.cache.layers
