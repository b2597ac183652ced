"""The kernels for GPUs, interpreted and compiled for one, against their plain twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from moejax.kernels import copies, grouped
from moejax.kernels.grouped import (
    ROWS,
    Tiles,
    kernels_here,
    make_tiles,
    rows_product,
    rows_swiglu,
    weights_product,
)

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
# expert 0 has a tile, 1 has two; the last tile has no owner
TILES, NUM_ROWS = (1, 2), 4 * ROWS
OWNED = sum(TILES) * ROWS
WIDTH, HIDDEN = 64, 192


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def tiles() -> Tiles:
    return make_tiles(jnp.asarray(TILES, jnp.int32), NUM_ROWS)


def products(implementation):
    """Every product: a function and its arguments. Rows of tiles without owner are NaN."""
    x_ND = draw(0, NUM_ROWS, WIDTH).at[OWNED:].set(jnp.nan)
    y_NH = draw(1, NUM_ROWS, HIDDEN).at[OWNED:].set(jnp.nan)
    gate, up = (draw(seed, len(TILES), WIDTH, HIDDEN) for seed in (2, 3))
    options = {"implementation": implementation}
    return {
        "rows": (lambda *args: rows_product(*args, **options), (x_ND, gate, tiles())),
        "transposed": (
            lambda *args: rows_product(*args, transposed=True, **options),
            (y_NH, gate, tiles()),
        ),
        "swiglu": (
            lambda *args: rows_swiglu(*args, keep=True, **options),
            (x_ND, gate, up, tiles()),
        ),
        "weights": (lambda *args: weights_product(*args, **options), (x_ND, y_NH, tiles())),
    }


def close(found, expected):
    found, expected = (np.asarray(leaf, np.float64) for leaf in (found, expected))
    return np.linalg.norm(found - expected) < 4e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["transposed", "swiglu", "weights"])
def test_interpreted_equals_plain(name):
    function, arguments = products("mosaic")[name]
    with plgpu.force_gpu_interpret_mode():
        found = jax.tree.leaves(jax.jit(function)(*arguments))
    compare(name, found)


@pytest.mark.parametrize("name", products("triton"))
def test_triton_interpreted_equals_plain(name):
    function, arguments = products("triton")[name]
    compare(name, jax.tree.leaves(jax.jit(function)(*arguments)))


def compare(name, found):
    function, arguments = products("xla")[name]
    expected = jax.tree.leaves(function(*arguments))
    for one, other in zip(found, expected, strict=True):
        owned = slice(None) if name == "weights" else slice(OWNED)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert close(one[owned], other[owned])


def rows_and_tokens():
    """Slots of 33 tokens with 3 choices each, the last 5 of which have none."""
    choices, order = 33 * 3, np.random.default_rng(4).permutation(OWNED)
    choice_N, slot_A = np.full(NUM_ROWS, choices), np.full(choices, NUM_ROWS)
    slot_A[:-5] = order[: choices - 5]
    choice_N[slot_A[:-5]] = np.arange(choices - 5)
    return jnp.asarray(choice_N, jnp.int32), jnp.asarray(slot_A.reshape(33, 3), jnp.int32)


def copied(implementation):
    choice_N, _ = rows_and_tokens()
    return (copies.copy_rows(draw(5, 33, HIDDEN), choice_N, tiles(), 3, implementation)[:OWNED],)


def summed(implementation):
    rows = tuple(draw(seed, NUM_ROWS, HIDDEN).at[OWNED:].set(jnp.nan) for seed in (6, 12))
    weight_Tk = abs(draw(7, 33, 3)).astype(jnp.float32)
    return (copies.sum_rows(rows, weight_Tk, rows_and_tokens()[1], implementation),)


def felt(implementation):
    gate, up, grad = (draw(seed, NUM_ROWS, HIDDEN).at[OWNED:].set(jnp.nan) for seed in (8, 9, 10))
    weight_N = draw(11, NUM_ROWS).astype(jnp.float32)
    found = copies.swiglu_gradient(gate, up, grad, weight_N, tiles(), implementation)
    return tuple(leaf[:OWNED] for leaf in found)


@pytest.mark.parametrize("function", [copied, summed, felt])
def test_copies_interpreted_equal_plain(function):
    found, expected = (jax.jit(lambda name=name: function(name))() for name in ("triton", "xla"))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert close(one, other)


@pytest.mark.parametrize(
    ("capability", "wanted", "kernels"),
    [
        ("9.0", "auto", "mosaic"),
        ("9.0", "triton", "triton"),
        ("8.0", "auto", "triton"),
        ("12.1", "", "triton"),
        ("8.9", "mosaic", None),
        ("7.5", "auto", None),
        ("gfx942", "auto", None),
    ],
)
def test_kernels_go_by_the_gpu(monkeypatch, capability, wanted, kernels):
    class Device:
        platform = "gpu"
        compute_capability = capability

    monkeypatch.setattr(grouped.jax, "devices", lambda: [Device()])
    monkeypatch.setenv("MOEJAX_KERNELS", wanted)
    assert kernels_here() == kernels


def test_unknown_kernels_are_named(monkeypatch):
    monkeypatch.setenv("MOEJAX_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"MOEJAX_KERNELS.*cuda"):
        kernels_here()


@pytest.mark.parametrize("name", products("mosaic"))
def test_compiles_for_a_gpu(name):
    function, arguments = products("mosaic")[name]
    lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))
    assert "mosaic_gpu" in lowered.as_text()


@pytest.mark.parametrize("counts", [(1,), (2, 1, 3), (1, 1, 1, 5)])
def test_tiles_have_owners(counts):
    num_tiles = sum(counts) + 2
    found = make_tiles(jnp.asarray(counts, jnp.int32), num_tiles * ROWS)
    owners = [expert for expert, count in enumerate(counts) for _ in range(count)]
    assert found.expert[: sum(counts)].tolist() == owners
    assert found.first.tolist() == [owners.index(expert) for expert in range(len(counts))]
    assert found.used.tolist() == [sum(counts)]
    # those without owner still name an expert whose matrix can be read
    assert int(found.expert.max()) < len(counts)


@pytest.mark.parametrize(
    ("rows", "experts", "width", "message"),
    [
        (NUM_ROWS - 1, 2, WIDTH, "511 rows do not fill 4 tiles of 128"),
        (NUM_ROWS, 3, WIDTH, "its first axis must be 2"),
        (NUM_ROWS, 2, 72, "the kernels need multiples of 64"),
    ],
)
def test_what_does_not_fit_is_refused(rows, experts, width, message):
    x, matrices = jnp.zeros((rows, width)), jnp.zeros((experts, width, HIDDEN))
    with pytest.raises(ValueError, match=message):
        rows_product(x, matrices, tiles(), implementation="mosaic")
