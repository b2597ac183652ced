"""The check of recorded tensors on files of other sizes and options, made by a NumPy definition.

The definition follows the published maths and layouts in float64, and shares nothing with moejax.
"""

import numpy as np
import pytest
from safetensors.numpy import save_file

from train.reference import check_folder

CASES = {
    "one_of_everything": {"model": "MoLE_DLinear", "S": 3, "P": 1, "C": 1, "K": 1, "F": 4, "B": 1},
    "minutes": {"model": "MoLE_DLinear", "S": 30, "P": 7, "C": 2, "K": 5, "F": 5, "B": 3},
    "no_rev": {"model": "MoLE_RLinear", "S": 9, "P": 4, "C": 3, "K": 2, "F": 4, "B": 2, "rev": 0},
    "rmlp": {"model": "MoLE_RMLP", "S": 9, "P": 4, "C": 3, "K": 6, "F": 4, "B": 2, "D": 11},
    "rmlp_no_rev": {"model": "RMLP", "S": 9, "P": 4, "C": 3, "K": 1, "B": 2, "D": 5, "rev": 0},
    "dlinear": {"model": "DLinear", "S": 40, "P": 4, "C": 3, "K": 1, "B": 2},
    "stacked": {"model": "MoLE_DLinear", "S": 8, "P": 4, "C": 3, "K": 2, "F": 4, "B": 2, "each": 1},
    "each": {"model": "RLinear", "S": 8, "P": 4, "C": 3, "K": 1, "B": 2, "each": 1},
}


def projections(model: str) -> tuple[str, ...]:
    if model.endswith("DLinear"):
        return "Linear_Seasonal", "Linear_Trend"
    return ("projection",) if model == "RMLP" else ("Linear",)


def make_case(size: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random published parameters and inputs of a model, and what it must answer."""
    S, P, C, K, B = (size[letter] for letter in "SPCKB")
    rows, mixture = P * K, size["model"].startswith("MoLE")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in projections(size["model"]):
        lead = (C,) if size.get("each") else ()
        shapes |= {f"{name}.weight": (*lead, rows, S), f"{name}.bias": (*lead, rows)}
    if "D" in size:
        D = size["D"]
        shapes |= {"temporal.0.weight": (D, S), "temporal.0.bias": (D,)}
        shapes |= {"temporal.2.weight": (S, D), "temporal.2.bias": (S,)}
    if mixture:
        shapes |= {
            "Linear_Temporal.0.weight": (K * C, size["F"]),
            "Linear_Temporal.0.bias": (K * C,),
        }
        shapes |= {"Linear_Temporal.2.weight": (K * C, K * C), "Linear_Temporal.2.bias": (K * C,)}
    if "DLinear" not in size["model"] and size.get("rev", 1):
        shapes |= {"rev.affine_weight": (C,), "rev.affine_bias": (C,)}
    param = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    if "rev.affine_weight" in param:
        param["rev.affine_weight"] += np.float32(1)
    inputs = {"in.x": rng.normal(size=(B, S, C)).astype(np.float32)}
    if mixture:
        inputs["in.x_mark"] = rng.uniform(-0.5, 0.5, (B, S, size["F"])).astype(np.float32)
    outputs = forward(size, {k: v.astype(np.float64) for k, v in (param | inputs).items()})
    named = {f"param.{k}": v for k, v in rename(param, size, mixture).items()}
    return {k: np.ascontiguousarray(v) for k, v in (inputs | outputs | named).items()}


def rename(param, size, mixture):
    """Per-channel projections under their published names: separate, or stacked in a mixture."""
    if not size.get("each"):
        return param
    named = {}
    for name, array in param.items():
        module, kind = name.rsplit(".", 1)
        if module not in projections(size["model"]):
            named[name] = array
        elif mixture:
            named[f"{module}.{kind}_per_channel"] = array
        else:
            named |= {f"{module}.{c}.{kind}": part for c, part in enumerate(array)}
    return named


def forward(size, t):
    S, P, C, K, B = (size[letter] for letter in "SPCKB")
    x = t["in.x"]

    def project(name, window_BSC):
        weight, bias = t[f"{name}.weight"], t[f"{name}.bias"]
        if weight.ndim == 2:
            weight, bias = np.stack([weight] * C), np.stack([bias] * C)
        columns = [window_BSC[:, :, c] @ weight[c].T + bias[c] for c in range(C)]
        return np.stack(columns, axis=2).reshape(B, P, K, C)

    def dense(name, values):
        return values @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    mean, std = x.mean(1, keepdims=True), np.sqrt(x.var(1, keepdims=True) + 1e-5)
    rev = "rev.affine_weight" in t
    window = (x - mean) / std * t["rev.affine_weight"] + t["rev.affine_bias"] if rev else x
    if "temporal.0.weight" in t:
        hidden = np.maximum(dense("temporal.0", window.swapaxes(1, 2)), 0)
        window = window + dense("temporal.2", hidden).swapaxes(1, 2)
    if "DLinear" in size["model"]:
        padded = np.pad(x, ((0, 0), (12, 12), (0, 0)), mode="edge")
        trend = np.stack([padded[:, s : s + 25].mean(1) for s in range(S)], axis=1)
        heads = project("Linear_Seasonal", x - trend) + project("Linear_Trend", trend)
    else:
        heads = project(*projections(size["model"]), window)
    gate = np.ones((B, K, C))
    if size["model"].startswith("MoLE"):
        hidden = np.maximum(dense("Linear_Temporal.0", t["in.x_mark"][:, 0]), 0)
        logits = dense("Linear_Temporal.2", hidden)
        by_channel = size["model"] == "MoLE_DLinear"
        logits = logits.reshape(B, C, K).swapaxes(1, 2) if by_channel else logits.reshape(B, K, C)
        gate = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = np.einsum("bpkc,bkc->bpc", heads, gate)
    if rev:
        y = (y - t["rev.affine_bias"]) / (t["rev.affine_weight"] + 1e-10) * std + mean
    outputs = {"out.y": y.astype(np.float32), "out.y_f64": y, "out.gate": gate.astype(np.float32)}
    return outputs | {"mid.heads": heads.swapaxes(1, 2).astype(np.float32)}


@pytest.mark.parametrize("name", CASES)
def test_other_sizes_and_options(tmp_path, name):
    size = CASES[name]
    tensors = make_case(size, np.random.default_rng(3))
    save_file(tensors, tmp_path / f"{name}.safetensors", {"model": size["model"], "seed": "3"})
    rows = check_folder(tmp_path)
    assert [row for row in rows if not row.ok] == []
    assert {row.tensor for row in rows} == {key for key in tensors if not key.startswith("in.")}
