"""Recorded runs of whole language models: a published checkpoint folder with io.safetensors.

Everything is computed from config.json and the weights as `load_lm` reads them: forward without
padding, with padding on either side, greedy continuation with a cache, training loss and gradient.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from moejax.interop.lm import load_lm
from moejax.interop.lm.families import family_of
from moejax.interop.lm.load import read_fields
from moejax.interop.lm.save import published_tensors
from moejax.layers.latent_attention import LatentAttentionConfig
from moejax.layers.rope import rope_rows
from moejax.models.moe_lm import LMConfig
from train.reference.lm_runs import forward, greedy, loss_and_gradient, plain
from train.reference.rows import Case, Computed, Findings, Row, check_case

FORWARD = {"atol": 2e-5, "rtol": 1e-4}
LOSS = {"atol": 0.0, "rtol": 1e-5}
GRADIENT = {"atol": 1e-5, "rtol": 1e-3}
FREQUENCY = {"atol": 1e-9, "rtol": 1e-5}
EXACT = {"atol": 0.0}

_RECORDED = "io.safetensors"
_NORM = "grad_l2"


def check_model(folder: Path) -> Iterator[Row]:
    """The rows of one model; a failed row if its files cannot be read."""
    if not (folder / _RECORDED).is_file():
        yield Row(folder.name, "(model)", note=f"nothing is recorded: there is no {_RECORDED}")
        return
    try:
        tensors = load_file(folder / _RECORDED)
    except (SafetensorError, OSError) as error:
        yield Row(folder.name, "(file)", ok=False, note=f"cannot be read: {error}")
        return
    case = Case(folder.name, folder, tensors, _norms(folder))
    with jax.default_matmul_precision("highest"):
        yield from check_case(case, _check)


def _norms(folder: Path) -> dict[str, str]:
    """Norms of gradients by parameter, of those that have one, where meta.json gives them."""
    try:
        found = json.loads((folder / "meta.json").read_text(encoding="utf-8"))[_NORM]
        return {f"{_NORM} {name}": repr(norm) for name, norm in found.items() if norm is not None}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def _check(case: Case) -> Findings:
    config, variables = load_lm(case.folder, dtype="float32")
    config = plain(config)
    found = Findings()
    _check_rope(case, config, found)
    for name in ("full", "left", "right"):
        if f"{name}.input_ids" in case.tensors:
            _check_forward(case, name, config, variables, found)
    if "gen.input_ids" in case.tensors:
        _check_greedy(case, config, variables, found)
    if "train.labels" in case.tensors:
        _check_training(case, config, variables, found)
    return found


def _check_rope(case: Case, config: LMConfig, found: Findings) -> None:
    attention = config.attention
    if attention.rope is None:
        return
    latent = isinstance(attention, LatentAttentionConfig)
    width = attention.rope_dim if latent else attention.head_dim
    # tables are recorded as two copies of the half table, whatever the pairs
    rope = replace(attention.rope, interleaved=False)
    length = len(case.tensors.get("rope.cos", case.tensors.get("full.input_ids", [[]])[0]))
    cos, sin = rope_rows(rope, width, np.arange(length))
    found.computed |= {
        "rope.inv_freq": Computed(rope.frequencies(width, length), **FREQUENCY),
        "rope.cos": Computed(cos, **FORWARD),
        "rope.sin": Computed(sin, **FORWARD),
    }


def _check_forward(
    case: Case, name: str, config: LMConfig, variables: Any, found: Findings
) -> None:
    """`name`: full, left or right. Rows of padding are not compared."""
    ids_BS, mask_BS, positions_BS = _inputs(case, name, found)
    ours = forward(config, variables, ids_BS, mask_BS, positions_BS)
    logits = np.where(mask_BS[..., None], ours.logits, 0.0)
    values: dict[str, Computed] = {"logits": Computed(logits, **FORWARD)}
    for index, hidden in enumerate(ours.sown["hidden"]):
        values[f"hidden.{index}"] = Computed(hidden, **FORWARD)
    values["aux_loss"] = Computed(ours.aux_loss.reshape(1), **LOSS)
    for index, tensors in ours.layers.items():
        for part, array in tensors.items():
            tolerance = EXACT if part == "topk_index" else FORWARD
            values[f"moe.{index}.{part}"] = Computed(array, **tolerance)
    for part, computed in values.items():
        recorded = case.tensors.get(f"{name}.{part}")
        if recorded is not None and part != "logits":
            computed = replace(computed, value=_unpadded(computed.value, recorded, mask_BS))
        found.computed[f"{name}.{part}"] = computed


def _unpadded(ours: np.ndarray, recorded: np.ndarray, mask_BS: np.ndarray) -> np.ndarray:
    """Our tensor, with what is recorded in rows of padding."""
    for rows in (mask_BS, mask_BS.reshape(-1)):
        if ours.shape == recorded.shape and ours.shape[: rows.ndim] == rows.shape:
            return np.where(
                rows.reshape(*rows.shape, *(1,) * (ours.ndim - rows.ndim)), ours, recorded
            )
    return ours


def _inputs(case: Case, name: str, found: Findings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token numbers, mask and positions of a recorded run."""
    ids_BS = case.tensor(f"{name}.input_ids")
    mask_BS = case.tensors.get(f"{name}.attention_mask", np.ones_like(ids_BS)).astype(bool)
    default_BS = np.broadcast_to(np.arange(ids_BS.shape[1], dtype=np.int32), ids_BS.shape)
    positions_BS = case.tensors.get(f"{name}.position_ids", default_BS)
    found.inputs |= {f"{name}.{one}" for one in ("input_ids", "attention_mask", "position_ids")}
    return ids_BS, mask_BS, np.ascontiguousarray(positions_BS)


def _check_greedy(case: Case, config: LMConfig, variables: Any, found: Findings) -> None:
    ids_BS, mask_BS, _ = _inputs(case, "gen", found)
    num_steps = case.tensor("gen.sequences").shape[1] - ids_BS.shape[1]
    if num_steps < 1:
        raise ValueError(f"gen.sequences are {num_steps} tokens longer than gen.input_ids")
    tokens_BN, logits_NBV = greedy(config, variables, ids_BS, mask_BS, num_steps)
    found.computed |= {
        "gen.sequences": Computed(np.concatenate([ids_BS, tokens_BN], axis=1), **EXACT),
        "gen.step_logits": Computed(logits_NBV, **FORWARD),
    }


def _check_training(case: Case, config: LMConfig, variables: Any, found: Findings) -> None:
    """On the batch padded on the right."""
    ids_BS, mask_BS, positions_BS = _inputs(case, "right", found)
    labels_BS = case.tensor("train.labels")
    loss, balance, gradient = loss_and_gradient(
        config, variables, ids_BS, mask_BS, labels_BS, positions_BS
    )
    found.inputs.add("train.labels")
    found.computed |= {
        "train.loss": Computed(loss.reshape(1), **LOSS),
        "train.aux_loss": Computed(balance.reshape(1), **LOSS),
    }
    family = family_of(read_fields(case.folder))
    flat: dict[str, Any] = flatten_dict(variables | {"params": gradient}, sep="/")
    for fused in (False, True):
        for name, array in published_tensors(config, family, flat, fused=fused):
            found.computed[f"train.grad.{name}"] = Computed(array, **GRADIENT)
            if f"{_NORM} {name}" in case.metadata:
                norm = np.linalg.norm(array.astype(np.float64))
                found.numbers[f"{_NORM} {name}"] = Computed(norm, **GRADIENT)
