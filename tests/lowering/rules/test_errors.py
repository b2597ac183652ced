"""What cannot be lowered says what it is, where it is, and what to do."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowering import lower
from lowering.errors import LoweringError
from tests.lowering.rules.cases.base import integers, normal

X, I = normal(3, 5), integers(3, 5)
KEY_DATA = np.zeros(2, np.uint32)


class Net(nn.Module):
    """A model whose second layer the device has no operation for."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(5, name="dense")(x)
        return nn.Conv(4, (3,), name="conv")(h[None])  # the line of the error


def test_names_primitive_operands_module_line_and_advice():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    with pytest.raises(LoweringError) as caught:
        lower(net.apply, variables, {"x": X})
    text = str(caught.value)
    source = Path(__file__).read_text().splitlines()
    (line,) = [i for i, code in enumerate(source, 1) if code.endswith("# the line of the error")]
    assert "cannot lower conv_general_dilated" in text
    assert "float32[1,3,5]" in text
    assert "float32[3,5,4]" in text
    assert "in module Net/conv" in text
    assert f"tests/lowering/rules/test_errors.py:{line}" in text
    assert "a sum over kernel taps" in text


def _key(data):
    return jax.random.normal(jax.random.wrap_key_data(data), (3,))


@pytest.mark.parametrize(
    ("function", "inputs", "words"),
    [
        (lambda x: lax.atan2(x, x), (X,), "atan2.*supported names like it: tanh"),
        (lambda x: lax.cummax(x), (X,), "cummax.*lax.scan of static length.*cumsum"),
        (lambda x: jnp.linalg.inv(x[:, :3]), (X,), "lu of.*on the host"),
        (lambda x: nn.max_pool(x[None], (2,)), (X,), "reduce_window_max.*jnp.maximum"),
        (_key, (KEY_DATA,), "random key depends on the inputs; draw on the host"),
        (lambda x: jnp.fft.rfft(x), (X,), "fft of.*sine and cosine"),
        (lambda x: jax.pure_callback(np.sin, x, x), (X,), "pure_callback.*cannot call the host"),
        (lambda x: lax.while_loop(lambda c: c.sum() < 9, lambda c: c + 1, x), (X,), "while.*one"),
        (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), (X,), "cond.*jnp.where"),
        (lambda i: i @ i.T, (I,), r"dot_general of \(int32\[3,5\], int32\[5,3\]\).*use floats"),
        (lambda i: i // 2, (I,), "div of.*use floats"),
        (lambda i: jnp.argmax(i), (I,), "argmax of.*convert first"),
        (lambda i: lax.top_k(i, 2), (I,), "top_k of.*convert first"),
        (lambda i: jnp.sort(i), (I,), "sort of.*sort one float key"),
        (lambda i: jnp.prod(i, 0), (I,), "reduce_prod of.*convert first"),
        (lambda i: i & 3, (I,), "and of.*bitwise"),
        (lambda i: i << 1, (I,), "shift_left of.*on the host"),
        (lambda x: x.astype(jnp.complex64), (X,), "complex64"),
        (lambda x, i: jnp.asarray(x)[i[0], i[1]], (X, I), "gather of.*take_along_axis"),
        (lambda x, i: x.at[i[0]].set(0.0), (jnp.asarray(X), I), "scatter of.*known position"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 1), (0, 0, 0)]), (X,), "pad of.*between elements"),
        (lambda x, v: lax.pad(x, v[0, 0], [(0, 1, 0)] * 2), (X, X), "padding value depends"),
        (lambda x, i: lax.dynamic_slice(x, (i[0, 0], i[0, 1]), (1, 1)), (X, I), "more than one"),
        (
            lambda x, i: lax.dynamic_update_slice(x, x[:2], (i[0, 0], 0)),
            (X, I),
            "start depends on the inputs",
        ),
        (lambda x: lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO), (X,), "ties to even"),
        (lambda x: lax.exp(x, accuracy=lax.Tolerance(rtol=1e-3)), (X,), "accuracy"),
    ],
)
def test_unsupported(function, inputs, words):
    named = {f"x{index}": array for index, array in enumerate(inputs)}
    with pytest.raises(LoweringError, match=f"(?s){words}") as caught:
        lower(lambda _, *arrays: function(*arrays), None, named)
    assert re.search(r"test_errors\.py:\d+", str(caught.value))


def test_an_input_must_have_shape_and_dtype():
    with pytest.raises(LoweringError, match="input 'x' is a list; give an array"):
        lower(lambda _, x: x, None, {"x": [1.0, 2.0]})
