"""The regions that transformers are made of."""

import jax
import jax.numpy as jnp
import numpy as np

from moejax.layers.attention import attention
from moejax.layers.cache import kv_update
from moejax.layers.embedding import embedding
from moejax.layers.gelu import gelu
from moejax.layers.linear import linear
from moejax.layers.mlp import swiglu
from moejax.layers.norm import layer_norm, rms_norm
from moejax.layers.rope import RopeConfig, rope, rope_rows
from tests.lowering.rules.cases.base import Case, booleans, integers, normal, positive

X = normal(2, 5, 50) + 0.5
SCALE, BIAS = positive(50), normal(50)


def _attention(
    name: str, heads: int, groups: int, steps: int, keys: int, width: int, **options
) -> Case:
    """Attention of inputs; `mask` and `bias` are known, those in `computed` are inputs too."""
    q, k, v = (
        normal(2, heads, steps, width),
        normal(2, groups, keys, width),
        normal(2, groups, keys, width, seed=1),
    )
    computed = options.pop("computed", {})
    arrays = (q, k, v, *computed.values())
    scale = options.pop("scale", width**-0.5)

    def function(q, k, v, *rest):
        given = {**options, **dict(zip(computed, rest, strict=True))}
        mask, bias = given.pop("mask", None), given.pop("bias", None)
        return attention(q, k, v, mask, bias, scale=scale, **given)

    return Case("moejax.attention", name, function, arrays, float32=6e-3, bfloat16=0.012)


MASK50, MASK64 = (booleans(2, 1, n, n) | np.eye(n, dtype=bool)[None, None] for n in (50, 64))
FEW = booleans(2, 1, 1, 64) | (np.arange(64) == 3)
CACHE = normal(2, 2, 40, 8)
PADDING = np.arange(50)[None, None, None] < np.array([50, 31])[:, None, None, None]

CASES = [
    Case("moejax.rms_norm", "scale", lambda x: rms_norm(x, SCALE, eps=1e-6), (X,)),
    Case("moejax.rms_norm", "plain", lambda x: rms_norm(x, eps=1e-6), (X,)),
    Case(
        "moejax.rms_norm",
        "rank 4",
        lambda x: rms_norm(x, SCALE[:32], eps=1e-5),
        (normal(2, 3, 5, 32),),
    ),
    Case("moejax.rms_norm", "rank 1", lambda x: rms_norm(x, SCALE, eps=1e-6), (X[0, 0],)),
    Case("moejax.rms_norm", "computed scale", lambda x, s: rms_norm(x, s, eps=1e-6), (X, SCALE)),
    Case(
        "moejax.layer_norm", "scale and bias", lambda x: layer_norm(x, SCALE, BIAS, eps=1e-5), (X,)
    ),
    Case("moejax.layer_norm", "scale", lambda x: layer_norm(x, SCALE, eps=1e-5), (X,)),
    Case("moejax.layer_norm", "bias", lambda x: layer_norm(x, None, BIAS, eps=1e-5), (X,)),
    Case("moejax.layer_norm", "plain", lambda x: layer_norm(x, eps=1e-5), (X,)),
    Case("function", "vmap of a norm", jax.vmap(lambda x: rms_norm(x, SCALE, eps=1e-6)), (X,)),
    *(
        Case("moejax.gelu", form, lambda x, f=form: gelu(x, form=f), (X,), bfloat16=0.012)
        for form in ("exact", "tanh")
    ),
    Case(
        "moejax.gelu",
        "after linear",
        lambda x: linear(x, normal(50, 6), activation="gelu"),
        (X,),
        bfloat16=0.012,
    ),
    Case(
        "moejax.swiglu",
        "rank 3",
        lambda x: swiglu(x, normal(50, 20) / 7, normal(50, 20, seed=1) / 7, normal(20, 50) / 4),
        (X,),
        float32=6e-3,
        bfloat16=0.012,
    ),
    Case(
        "moejax.embedding",
        "weight",
        lambda i: embedding(i, normal(11, 8)),
        (integers(3, 5, low=0, high=11),),
    ),
    Case(
        "moejax.embedding",
        "input",
        lambda i, t: embedding(i, t),
        (integers(5, low=0, high=11), normal(11, 8)),
    ),
    *(
        Case(
            "moejax.rope",
            f"width {width} interleaved {interleaved}",
            lambda x, w=width, i=interleaved: rope(
                x, *rope_rows(RopeConfig(interleaved=i), w, np.arange(5)), interleaved=i
            ),
            (normal(2, 3, 5, 32),),
        )
        for width in (32, 16)
        for interleaved in (False, True)
    ),
    Case(
        "moejax.rope",
        "computed tables",
        lambda x, c, s: rope(x, c, s),
        (normal(2, 3, 5, 8), *rope_rows(RopeConfig(), 8, np.arange(5) + 3)),
    ),
    *(
        _attention(f"causal {n} width {w}", 4, g, n, n, w, causal=True)
        for n, w, g in ((50, 32, 2), (64, 64, 4), (160, 32, 1), (7, 16, 2))
    ),
    _attention("causal with a past", 4, 2, 7, 50, 32, causal=True),
    _attention("all keys", 4, 2, 50, 64, 32),
    _attention("all keys unaligned", 4, 4, 50, 45, 32),
    _attention("one query", 4, 2, 1, 64, 32),
    _attention("mask", 4, 2, 64, 64, 32, mask=MASK64),
    _attention("mask unaligned", 4, 2, 50, 50, 32, mask=MASK50),
    _attention("mask and causal", 4, 2, 50, 50, 32, mask=PADDING, causal=True),
    _attention("bias", 4, 4, 50, 50, 32, bias=normal(1, 4, 50, 50), scale=1.0),
    _attention("bias and mask", 4, 4, 64, 64, 64, bias=normal(1, 4, 64, 64), mask=MASK64),
    _attention("computed mask", 4, 2, 50, 50, 32, computed={"mask": PADDING}),
    _attention(
        "computed mask and causal", 4, 2, 50, 50, 32, computed={"mask": PADDING}, causal=True
    ),
    _attention(
        "computed mask and bias",
        4,
        4,
        50,
        50,
        32,
        computed={"mask": PADDING},
        bias=normal(1, 4, 50, 50),
    ),
    _attention("computed bias", 4, 4, 64, 64, 32, computed={"bias": normal(2, 1, 1, 64)}),
    _attention("narrow heads with a mask", 4, 2, 50, 50, 16, mask=MASK50),
    _attention("one query with a mask", 4, 2, 1, 64, 32, mask=FEW),
    _attention("one query with a computed mask", 4, 2, 1, 64, 32, computed={"mask": FEW}),
    _attention("one query padded", 4, 1, 1, 50, 24, computed={"mask": PADDING}),
    _attention("one query with a bias", 4, 4, 1, 64, 32, computed={"bias": normal(1, 4, 1, 64)}),
    Case(
        "moejax.attention",
        "values of another width",
        lambda q, k, v: attention(q, k, v, scale=0.2, causal=True),
        (normal(2, 4, 40, 48), normal(2, 4, 40, 48, seed=1), normal(2, 4, 40, 32)),
        float32=6e-3,
        bfloat16=0.012,
    ),
    Case(
        "moejax.attention",
        "values that are the keys' first features",
        lambda q, v, k: attention(q, jnp.concatenate([v, k], -1), v, scale=0.2),
        (normal(2, 4, 1, 64), normal(2, 1, 64, 48), normal(2, 1, 64, 16)),
        float32=6e-3,
        bfloat16=0.012,
    ),
    Case(
        "moejax.rope",
        "rows of a table",
        lambda x, p: rope(x, *(t[:, None] for t in rope_rows(RopeConfig(), 32, p, limit=64))),
        (normal(2, 3, 5, 32), integers(2, 5, low=0, high=64)),
    ),
    Case(
        "moejax.kv_update", "a computed slot", kv_update, (CACHE, normal(2, 2, 1, 8), np.int32(5))
    ),
    Case(
        "moejax.kv_update",
        "from a known slot on",
        lambda cache, new: kv_update(cache, new, 7),
        (CACHE, normal(2, 2, 4, 8)),
    ),
]
