"""Numbers for a function's inputs and state, and what the function makes of them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lowering.runtime.folder import Sample
from lowering.trace import named_leaves


def make_sample(
    function: Callable[..., Any], params: Any, inputs: Mapping[str, Any], state: Any = None
) -> Sample:
    """One call of the function, in float32 throughout.

    For a jax.ShapeDtypeStruct among the inputs seeded normal numbers stand in, zeros for integers
    and in state.
    """
    examples = {key: _concrete(value) for key, value in inputs.items()}
    with jax.default_matmul_precision("highest"):
        if state is None:
            return Sample(examples, _arrays(function(params, *examples.values())))
        before = jax.tree.map(_at_rest, state)
        outputs, after = function(params, *examples.values(), before)
    states = ({k: np.asarray(v) for k, v in named_leaves(tree).items()} for tree in (before, after))
    return Sample(examples, _arrays(outputs), *states)


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _concrete(value: Any) -> np.ndarray:
    if not isinstance(value, jax.ShapeDtypeStruct):
        return np.asarray(value)
    normal = np.random.default_rng(0).standard_normal(value.shape)
    return (
        normal.astype(value.dtype)
        if np.dtype(value.dtype).kind == "f"
        else np.zeros(value.shape, value.dtype)
    )


def _at_rest(leaf: Any) -> Any:
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return np.zeros(leaf.shape, leaf.dtype) if abstract else leaf
