"""Every op of a program, alone, gives what it gives in the program."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowering import lower
from lowering.backends import reference
from lowering.ops import OPS
from lowering.runtime.verify import verify
from lowering.single_op import sample_of, single_op
from moejax.layers.cache import kv_update
from moejax.layers.linear import linear

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((32, 32)).astype(np.float32)


def step(params, x, slot, cache):
    """A product, a cache written in place, and several results of one op."""
    y = linear(x, params)
    cache = kv_update(cache, y[:, None, None], slot)
    best, place = jnp.sort(y, axis=-1), jnp.argmax(y, axis=-1)
    return (best + cache[:, 0, 0], place), cache


@pytest.fixture(scope="module")
def run():
    """The program and the numbers of all its values."""
    inputs = {"x": RNG.standard_normal((2, 32)).astype(np.float32), "slot": np.int32(3)}
    state = RNG.standard_normal((2, 1, 32, 32)).astype(np.float32)
    program = lower(step, KERNEL, inputs, state=state)
    (place,) = (value.name for value in program.state)
    numbers = {**program.arrays, **inputs, place: state}

    def on_op(op, results):
        numbers.update(zip((value.name for value in op.outputs), results, strict=True))

    reference.run(program, inputs, "device", on_op, {place: state})
    return program, numbers


def test_alone_as_in_the_program(run):
    program, numbers = run
    assert any(OPS[op.name].in_place is not None for op in program.ops)
    for index, op in enumerate(program.ops):
        alone = single_op(program, index)
        verify(alone)
        sample = sample_of(alone, numbers)
        state = dict(sample.before)
        found = reference.run(alone, sample.inputs, "device", state=state)
        for array, wanted in zip(found, sample.outputs, strict=True):
            np.testing.assert_array_equal(array, wanted, err_msg=str(op))
        for name, wanted in sample.after.items():
            np.testing.assert_array_equal(state[name], wanted, err_msg=str(op))
