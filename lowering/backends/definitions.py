"""What every op of the table computes, as numpy functions of its tensors and attrs.

Float tensors are float32 arrays, truth values 0.0 and 1.0. Sums run in float64, so that a result is
float32 arithmetic at its best; the caller gives results their dtype.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lowering.ir import FLOATS, TILE

Array = np.ndarray


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _rsqrt(x: Array) -> Array:
    return 1 / np.sqrt(x)


def _erf(x: Array) -> Array:
    from jax import lax  # the only functions that numpy has not: the rest runs without jax

    return np.asarray(lax.erf(x))


def _erfc(x: Array) -> Array:
    from jax import lax

    return np.asarray(lax.erfc(x))


def _gelu(x: Array, *, fast_and_approximate_mode: bool = False) -> Array:
    if fast_and_approximate_mode:
        return x * 0.5 * (1 + np.tanh(np.float32(0.7978845608) * (x + 0.044715 * x * x * x)))
    return x * 0.5 * (1 + _erf(x * np.float32(0.5**0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": _relu,
    "silu": _silu,
    "sqrt": np.sqrt,
    "rsqrt": _rsqrt,
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "square": np.square,
    "abs": np.abs,
}


def _binary(function: Callable[..., Array]):
    def run_binary(a, b=None, *, scalar=None, activations=(), dtype=None):
        del dtype
        result = function(a, b if b is not None else np.asarray(scalar, a.dtype))
        for name in activations:
            result = ACTIVATIONS[name](result)
        return result

    return run_binary


def _swap(x: Array, flag: bool) -> Array:
    return np.swapaxes(x, -1, -2) if flag else x


def _matmul(a, b, bias=None, *, transpose_a=False, transpose_b=False, activation=None, **_):
    result = np.matmul(_swap(a, transpose_a), _swap(b, transpose_b))
    result = result if bias is None else result + bias
    return ACTIVATIONS[activation](result) if activation else result


def _sparse_matmul(a, b, sparsity, indices=None, *, is_input_a_sparse=False, **_):
    """Products of a with the matrices that the indices name, or with all that are not left out."""
    if indices is not None:
        b = b[:, indices.reshape(-1)]
    product = np.matmul(a if is_input_a_sparse else a[:, :, None, None], b)
    if indices is not None:
        return product
    return np.where(sparsity.reshape(-1, 1, 1) != 0, product, np.float32(0))


def _where(which, *branches, true_scalar=None, false_scalar=None):
    rest = list(branches)
    true = rest.pop(0) if true_scalar is None else np.float32(true_scalar)
    false = rest.pop(0) if false_scalar is None else np.float32(false_scalar)
    return np.where(which != 0, true, false)


def _wide(x: Array) -> Any:
    return np.float64 if x.dtype == np.float32 else x.dtype


def _reduction(function: Callable[..., Array], *, sums: bool):
    def reduce(x, *, dim=None, keepdim=False):
        axes = tuple(dim) if isinstance(dim, list | tuple) else dim
        options = {"dtype": _wide(x)} if sums else {}
        return function(x, axis=axes, keepdims=keepdim, **options)

    return reduce


def _var(x, *, dim, keepdim=False, correction=True):
    axes = tuple(dim) if isinstance(dim, list | tuple) else dim
    return np.var(x, axis=axes, keepdims=keepdim, ddof=int(correction), dtype=np.float64)


def softmax(x: Array, *, dim: int = -1, numeric_stable: bool = True) -> Array:
    """Always the stable form: it differs in nothing that float32 shows."""
    del numeric_stable
    weights = np.exp(x - x.max(axis=dim, keepdims=True))
    return weights / weights.sum(axis=dim, keepdims=True, dtype=np.float64)


def _topk(x, *, k, dim, largest=True, sorted=True, stable=True):
    ids = np.argsort(-x if largest else x, axis=dim, kind="stable")
    ids = np.take(ids, np.arange(k), axis=dim)
    return np.take_along_axis(x, ids, axis=dim), ids


def _sort(x, *, dim, descending=False, stable=True):
    ids = np.argsort(-x if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, ids, axis=dim), ids


def _slice(x, *, begins, ends, steps):
    return x[tuple(slice(*span) for span in zip(begins, ends, steps, strict=True))]


def _gather(x, index, *, dim):
    """torch semantics: axes other than `dim` may be shorter in the index."""
    grid: list[Any] = list(np.ogrid[tuple(slice(size) for size in index.shape)])
    grid[dim] = index
    return x[tuple(grid)]


def _rms_norm(x, weight=None, *, epsilon):
    power = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float64)
    y = x / np.sqrt(power + epsilon)
    return y if weight is None else y * weight.reshape(-1)


def _layer_norm(x, weight=None, bias=None, *, epsilon):
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float64)
    y = _rms_norm(centred, weight, epsilon=epsilon)
    return y if bias is None else y + bias.reshape(-1)


def attention_scores(q, k, attn_mask=None, *, is_causal=False, scale, **_):
    """[B, N, S, T] of queries [B, N, S, H] and keys; query head n reads key head n // (N / M)."""
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = np.matmul(q, np.swapaxes(k, -1, -2)) * np.float32(scale)
    if attn_mask is not None:
        scores = scores + attn_mask
    if is_causal:
        keep = np.tri(*scores.shape[-2:], dtype=bool)
        scores = np.where(keep, scores, np.float32(-np.inf))
    return scores


def weighted_values(weights: Array, v: Array) -> Array:
    """[B, N, S, T] weights of values [B, M, T, H]."""
    return np.matmul(weights, np.repeat(v, weights.shape[1] // v.shape[1], axis=1))


def _attention(q, k, v, attn_mask=None, **attrs):
    scores = attention_scores(q, k, attn_mask, **attrs)
    return weighted_values(softmax(scores).astype(np.float32), v)


def _attention_decode(q, k, v, attn_mask, **attrs):
    weights = softmax(decode_scores(q, k, attn_mask, **attrs)).astype(np.float32)
    return np.moveaxis(weighted_values(weights, v), 2, 0)


def decode_scores(q, k, attn_mask, *, scale, **attrs):
    """Queries [1, B, N, H] and a mask [B, 1, N, T], else as attention of one step; the mask is
    added before the scores are scaled.
    """
    q, mask = np.moveaxis(q, 0, 2), np.moveaxis(attn_mask, 1, 2) * np.float32(scale)
    return attention_scores(q, k, mask, scale=scale, **attrs)


def _fill_cache(cache, rows, *, batch_idx):
    """The rest of the last block of 32 rows is overwritten too."""
    cache = cache.copy()
    missing = -rows.shape[2] % TILE
    cache[batch_idx, :, : rows.shape[2] + missing] = np.pad(
        rows[0], [(0, 0), (0, missing), (0, 0)]
    )[:, : cache.shape[2]]
    return cache


def _update_cache(cache, rows, slots):
    cache = cache.copy()
    cache[np.arange(len(slots)), :, slots] = rows[0]
    return cache


def _cumulative(function: Callable[..., Array]):
    def run_cumulative(x, *, dim, reverse_order=False):
        x = np.flip(x, dim) if reverse_order else x
        result = function(x, axis=dim, dtype=_wide(x))
        return np.flip(result, dim) if reverse_order else result

    return run_cumulative


UNARY: dict[str, Callable[[Array], Array]] = {
    **ACTIVATIONS,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "expm1": np.expm1,
    "reciprocal": np.reciprocal,
    "neg": np.negative,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "erf": _erf,
    "erfc": _erfc,
    "softplus": lambda x: np.logaddexp(x, np.float32(0)),
    "sin": np.sin,
    "cos": np.cos,
    "logical_not": lambda x: x == 0,
    "isfinite": np.isfinite,
    "isnan": np.isnan,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "rsub": lambda a, b: b - a,
    "rdiv": lambda a, b: b / a,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "remainder": np.mod,
    "fmod": np.fmod,
    "floor_div": np.floor_divide,
    "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
REFERENCE: dict[str, Callable[..., Any]] = {
    **UNARY,
    **{name: _binary(function) for name, function in BINARY.items()},
    "clamp": lambda x, *, min=None, max=None: np.clip(x, min, max),
    "gelu": _gelu,
    "where": _where,
    "addcmul": lambda a, b, c: a + b * c,
    "matmul": _matmul,
    "linear": _matmul,
    "sparse_matmul": _sparse_matmul,
    "sum": _reduction(np.sum, sums=True),
    "mean": _reduction(np.mean, sums=True),
    "max": _reduction(np.max, sums=False),
    "min": _reduction(np.min, sums=False),
    "var": _var,
    "argmax": lambda x, *, dim, keepdim=False: np.argmax(x, axis=dim, keepdims=keepdim),
    "cumsum": _cumulative(np.cumsum),
    "cumprod": _cumulative(np.cumprod),
    "softmax": softmax,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "scaled_dot_product_attention": _attention,
    "scaled_dot_product_attention_decode": _attention_decode,
    "fill_cache": _fill_cache,
    "paged_update_cache": _update_cache,
    "copy": lambda source, target: source,
    "to_memory_config": lambda x: x,
    "topk": _topk,
    "sort": _sort,
    "gather": _gather,
    "embedding": lambda ids, table, *, layout=None: table[ids],
    "concat": lambda *xs, dim: np.concatenate(xs, axis=dim),
    "slice": _slice,
    "pad": lambda x, *, padding, value: np.pad(x, padding, constant_values=value),
    "permute": lambda x, *, dims: np.transpose(x, dims),
    "reshape": lambda x, *, shape: np.reshape(x, shape),
    "expand": lambda x, *, shape: np.broadcast_to(x, shape),
    "typecast": lambda x, *, dtype: x.astype(np.float32 if dtype in FLOATS else dtype),
    "to_layout": lambda x, *, layout: x,
}
