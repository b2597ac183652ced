"""State that stays on the device: written in place, never read once it is old."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowering import LoweringError, lower, parity
from lowering.backends.reference import HostSession
from lowering.ir import Op, from_json, to_json
from lowering.runtime.verify import verify
from moejax.layers.attention import attention
from moejax.layers.cache import kv_update
from tests.lowering.rules.cases.base import normal

HEADS, GROUPS, WIDTH, SLOTS = 4, 2, 32, 64
KERNELS = {name: normal(24, n * WIDTH) / 5 for name, n in (("q", HEADS), ("k", GROUPS))}


def caches(batch: int) -> list[dict[str, np.ndarray]]:
    shape = batch, GROUPS, SLOTS, WIDTH
    return [{"key": normal(*shape, seed=i), "value": normal(*shape, seed=i + 9)} for i in range(2)]


def heads(x, kernel):
    return (x @ kernel).reshape(*x.shape[:2], -1, WIDTH).transpose(0, 2, 1, 3)


def step(params, x, slot, state):
    """Two layers of attention over a cache that gets one more row at `slot`."""
    after = []
    for layer in state:
        q, k = heads(x, params["q"]), heads(x, params["k"])
        layer = {name: kv_update(rows, k, slot) for name, rows in layer.items()}
        seen = (jnp.arange(SLOTS) <= slot)[None, None, None]
        y = attention(q, layer["key"], layer["value"], seen, scale=WIDTH**-0.5)
        x = x + y.transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)[..., : x.shape[-1]]
        after.append(layer)
    return x, after


def first(params, x, state):
    """The cache's first rows."""
    k = heads(x, params["k"])
    return k, jax.tree.map(lambda rows: kv_update(rows, k, 0), state)


def names(program) -> list[str]:
    return [op.name for op in program.ops]


@pytest.mark.parametrize("batch", [1, 3])
def test_one_row_is_written_where_it_lies(batch):
    inputs = {"x": normal(batch, 1, 24), "slot": np.int32(37)}
    parity.assert_parity(step, KERNELS, inputs, state=caches(batch))
    program = lower(step, KERNELS, inputs, state=caches(batch))
    assert names(program).count("paged_update_cache") == 4
    assert names(program).count("scaled_dot_product_attention_decode") == 2
    assert "copy" not in names(program)
    assert all(value.memory == "dram" for value in program.state)
    assert from_json(to_json(program)) == program


@pytest.mark.parametrize("batch", [1, 2])
def test_first_rows_are_written_where_they_lie(batch):
    inputs = {"x": normal(batch, 32, 24)}
    parity.assert_parity(first, KERNELS, inputs, state=caches(batch))
    program = lower(first, KERNELS, inputs, state=caches(batch))
    assert names(program).count("fill_cache") == 4 * batch
    assert "copy" not in names(program)


def test_state_of_any_kind_is_copied_to_its_place():
    def count(_, x, state):
        total = state["sum"] + x
        return total * state["steps"], {"sum": total, "steps": state["steps"] + 1, "same": x * 0}

    state = {"sum": normal(3, 5), "steps": np.float32(2), "same": normal(3, 5)}
    parity.assert_parity(count, None, {"x": normal(3, 5)}, state=state)
    program = lower(count, None, {"x": normal(3, 5)}, state=state)
    assert names(program).count("copy") == 3


def test_an_update_whose_old_cache_is_read_makes_a_new_one():
    def both(_, new, state):
        return state.sum(axis=2), kv_update(state, new, 0)

    cache = caches(1)[0]["key"]
    parity.assert_parity(both, None, {"new": normal(1, GROUPS, 32, WIDTH)}, state=cache)
    program = lower(both, None, {"new": normal(1, GROUPS, 32, WIDTH)}, state=cache)
    assert names(program).count("copy") == 1
    assert "fill_cache" not in names(program)


def test_a_session_goes_on_from_its_state():
    program = lower(lambda _, x, s: (s + x, s + x), None, {"x": np.ones(4)}, state=np.zeros(4))
    session = HostSession(program, program.arrays, "exact")
    sums = [session.run({"x": np.ones(4)})[0][0] for _ in range(3)]
    session.reset()
    assert [*sums, session.run({"x": np.ones(4)})[0][0]] == [1, 2, 3, 1]


def test_old_state_is_not_read():
    program = lower(lambda _, x, s: (x, s + x), None, {"x": normal(4)}, state=normal(4))
    (state,), last = program.state, program.ops[-1]
    assert last.name == "copy"
    late = Op("abs", (state.name,), (type(state)("late", state.shape, state.dtype),))
    with pytest.raises(ValueError, match="reads 'state', overwritten by op"):
        verify(program.replace(ops=(*program.ops, late)))
    with pytest.raises(ValueError, match="not the newest of each state"):
        verify(program.replace(kept=(state.name,)))
    wrong = last.replace(inputs=last.inputs[::-1])
    with pytest.raises(ValueError, match="which is no state"):
        verify(program.replace(ops=(*program.ops[:-1], wrong)))


@pytest.mark.parametrize(
    ("function", "inputs", "words"),
    [
        (lambda _, new, s: (new, kv_update(s, new, 0)), (40,), "multiples of 32"),
        (lambda _, new, s: (new, kv_update(s, new, 32)), (32,), "only the first slots"),
        (
            lambda _, new, s: (new, kv_update(s, new, new[0, 0, 0, 0].astype(jnp.int32))),
            (2,),
            "several slots from a computed one on",
        ),
        (lambda _, new, s: new, (32,), "must return .results, new state."),
        (lambda _, new, s: (new, s[:, :1]), (32,), "state is .* before the call and .* after it"),
    ],
)
def test_unsupported(function, inputs, words):
    (rows,) = inputs
    new = normal(1, GROUPS, rows, WIDTH)
    with pytest.raises(LoweringError, match=words):
        lower(function, None, {"new": new}, state=caches(1)[0]["key"])
