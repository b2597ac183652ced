"""A JAX function and example inputs -> a flat list of nodes.

The only file that touches JAX internals.

Call-like equations (jit, custom derivatives, remat, scan of static length, cond with a known
predicate) are inlined; whatever depends on parameters and constants alone is evaluated here, once,
by JAX itself; dead equations are dropped. Regions stay one node each when their body is what the
region's function says, with that body kept beside them.
"""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import source_info_util
from jax.extend import core

from lowering.errors import LoweringError, describe
from lowering.graph import Graph, Known, Node, Operand, Tensor, live
from lowering.ir import Source
from moejax import regions
from moejax.regions import RegionCall, find_call


def trace(
    function: Callable[..., Any], params: Any, inputs: Mapping[str, Any], state: Any = None
) -> Graph:
    """The graph of `function(params, *inputs.values())`, with `params` known.

    `inputs`: name -> array or ShapeDtypeStruct, in the order of the arguments. The results are the
    leaves of what the function returns. With `state`, a pytree, it is the function's last argument,
    and the function returns (results, new state of the same structure).
    """
    examples = {name: _abstract(name, value) for name, value in inputs.items()}
    before = {name: _abstract(name, leaf) for name, leaf in named_leaves(state).items()}
    rest = (
        () if state is None else (jax.tree.unflatten(jax.tree.structure(state), before.values()),)
    )
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, *examples.values(), *rest)
    if state is not None:
        _check_state(before, shapes)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = [Known(_array(leaf), _path_name(path)) for path, leaf in leaves]
    tensors = {
        name: Tensor(tuple(e.shape), np.dtype(e.dtype)) for name, e in (examples | before).items()
    }
    operands = (_empty(t.shape, t.dtype) if 0 in t.shape else t for t in tensors.values())
    graph = _inline(closed, [*known, *operands], Source())
    split = len(graph.results) - len(before)
    return Graph(
        graph.nodes,
        graph.results[:split],
        {name: tensors[name] for name in examples},
        {name: tensors[name] for name in before},
        dict(zip(before, graph.results[split:], strict=True)),
    )


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves of a state pytree by the names that they have in a program."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {".".join(filter(None, ("state", _path_name(path)))): leaf for path, leaf in leaves}


def _check_state(before: Mapping[str, Any], shapes: Any) -> None:
    if not isinstance(shapes, tuple) or len(shapes) != 2:
        raise LoweringError("a function with state must return (results, new state)")
    after = named_leaves(shapes[1])
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if old is None or new is None or (old.shape, old.dtype) != (new.shape, new.dtype):
            raise LoweringError(
                f"{name} is {old} before the call and {new} after it; keep its type"
            )


def _array(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jax.numpy.asarray(leaf)


def _empty(shape: tuple[int, ...], dtype: Any) -> Known:
    """What has no elements is known."""
    return Known(np.zeros(shape, dtype))


def _abstract(name: str, value: Any) -> jax.ShapeDtypeStruct:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise LoweringError(
            f"input {name!r} is a {type(value).__name__}; give an array or a jax.ShapeDtypeStruct"
        )
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    return jax.ShapeDtypeStruct(value.shape, dtype)


def _path_name(path) -> str:
    return ".".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


def _open(jaxpr) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, constants) of an open or closed jaxpr."""
    consts = getattr(jaxpr, "consts", ())
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    return inner, consts


def _inline(jaxpr, operands: Sequence[Operand], outer: Source) -> Graph:
    """The live nodes of a jaxpr applied to operands."""
    inner, consts = _open(jaxpr)
    env: dict[Any, Operand] = {}
    if len(consts):
        env |= {var: Known(c) for var, c in zip(inner.constvars, consts, strict=True)}
    env |= dict(zip(inner.invars, operands, strict=True))

    def read(atom) -> Operand:
        if isinstance(atom, core.Literal):
            return Known(np.asarray(atom.val, jax.numpy.result_type(atom.aval)))
        return env[atom]

    nodes: list[Node] = []
    for eqn in inner.eqns:
        new, results = _equation(eqn, [read(atom) for atom in eqn.invars], outer)
        nodes += new
        env |= dict(zip(eqn.outvars, results, strict=True))
    results = tuple(read(atom) for atom in inner.outvars)
    return Graph(live(nodes, results), results)


def _equation(
    eqn, inputs: list[Operand], outer: Source
) -> tuple[Sequence[Node], Sequence[Operand]]:
    source = _source(eqn, outer)
    if all(0 in var.aval.shape for var in eqn.outvars):
        return (), [_empty(var.aval.shape, var.aval.dtype) for var in eqn.outvars]
    known = [operand for operand in inputs if isinstance(operand, Known)]
    if len(known) == len(inputs) and not eqn.effects:
        return (), _evaluate(eqn, known)
    name = eqn.primitive.name
    if name in _CONTROL:
        graph = _CONTROL[name](eqn, inputs, source)
        return graph.nodes, graph.results
    call = find_call(eqn.params.get("name", "")) if name in ("jit", "pjit") else None
    body = _sub_jaxpr(eqn)
    if call is not None:
        return _region(eqn, body, call, inputs, source)
    if body is not None:
        graph = _inline(body, inputs, source)
        return graph.nodes, graph.results
    outputs = _outputs(eqn, inputs, source)
    compute = functools.partial(_bind, eqn.primitive, eqn.params)
    node = Node(name, tuple(inputs), outputs, eqn.params, source, compute=compute)
    return (node,), outputs


def _outputs(eqn, inputs: Sequence[Operand], source: Source) -> tuple[Tensor, ...]:
    for var in eqn.outvars:
        if jax.numpy.issubdtype(var.aval.dtype, jax.dtypes.extended):
            raise LoweringError(
                f"{describe(eqn.primitive.name, inputs, source)}: the random key depends on the "
                "inputs; draw on the host and pass the numbers as an input"
            )
    return tuple(Tensor(tuple(v.aval.shape), np.dtype(v.aval.dtype)) for v in eqn.outvars)


def _region(eqn, body, call: RegionCall, inputs: list[Operand], outer: Source):
    """One node for a region whose body is unchanged; its inlined body otherwise.

    The precision mark is kept either way: maths that stays float32 does so under vmap as well.
    """
    source = Source(
        region=call.region.name,
        module=outer.module,
        line=outer.line,
        float32=outer.float32 or call.region.float32,
    )
    graph = _inline(body, inputs, source)
    if not _is_body_of(body, call, tuple(var.aval for var in eqn.invars)):
        return graph.nodes, graph.results
    outputs = _outputs(eqn, inputs, source)
    node = Node(call.region.name, tuple(inputs), outputs, call.attrs, source, call, graph)
    return (node,), outputs


def _is_body_of(body, call: RegionCall, avals) -> bool:
    """Whether tracing the region's function at these arguments gives the body again."""
    if len(avals) != call.structure.num_leaves:
        return False
    examples = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
    try:
        return str(jax.make_jaxpr(call.body)(*examples)) == str(body)
    except Exception:
        # the function may refuse shapes that a transformation made: then it is not its body
        return False


def _evaluate(eqn, inputs: Sequence[Known]) -> list[Known]:
    """The results of an equation whose inputs are all known, computed by JAX on the host."""
    with jax.default_matmul_precision("highest"):
        arrays = _bind(eqn.primitive, eqn.params, [operand.array for operand in inputs])
    origins = {operand.name for operand in inputs if operand.name}
    name = origins.pop() if len(origins) == 1 else ""
    return [Known(array, name) for array in arrays]


def _bind(primitive, params: Mapping[str, Any], arrays: Sequence[Any]) -> Sequence[Any]:
    bound = primitive.get_bind_params(params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*subfuns, *arrays, **params)
    return results if primitive.multiple_results else [results]


def _sub_jaxpr(eqn):
    """The body of a call-like equation under whatever parameter name this JAX uses, or None."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            return eqn.params[key]
    return None


def _scan(eqn, inputs: list[Operand], source: Source) -> Graph:
    """A scan as its unrolled steps."""
    params = eqn.params
    num_consts, num_carry = _scan_counts(params)
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    xs, body = inputs[num_consts + num_carry :], params["jaxpr"]
    length = params["length"]
    order = reversed(range(length)) if params["reverse"] else range(length)
    nodes: list[Node] = []
    columns: dict[int, list[Operand]] = {}
    for step in order:
        slices = []
        for x in xs:
            graph = subgraph(
                functools.partial(jax.lax.index_in_dim, index=step, keepdims=False), [x], source
            )
            nodes += graph.nodes
            slices += graph.results
        graph = _inline(body, [*consts, *carry, *slices], source)
        nodes += graph.nodes
        carry, columns[step] = list(graph.results[:num_carry]), list(graph.results[num_carry:])
    stacked: list[Operand] = []
    if not length:
        stacked = [_empty(v.aval.shape, v.aval.dtype) for v in eqn.outvars[num_carry:]]
    for ys in zip(*(columns[step] for step in range(length)), strict=True):
        graph = subgraph(lambda *rows: jax.numpy.stack(rows), ys, source)
        nodes += graph.nodes
        stacked += graph.results
    return Graph(tuple(nodes), (*carry, *stacked))


def _scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(list(consts.vals)), len(list(carry.vals))


def _cond(eqn, inputs: list[Operand], source: Source) -> Graph:
    """The branch that a known index picks."""
    index, *operands = inputs
    if not isinstance(index, Known):
        raise LoweringError(
            describe("cond with a predicate that depends on the inputs", inputs, source)
            + "; compute both branches and choose with jnp.where"
        )
    branches = eqn.params["branches"]
    chosen = int(np.clip(index.numpy(), 0, len(branches) - 1))
    return _inline(branches[chosen], operands, source)


def _while(eqn, inputs: list[Operand], source: Source) -> Graph:
    raise LoweringError(
        describe("while loop", inputs, source)
        + "; lower one step of it and keep the loop on the host, or use lax.scan of static length"
    )


_CONTROL = {"scan": _scan, "cond": _cond, "while": _while}


def subgraph(function: Callable[..., Any], operands: Sequence[Operand], source: Source) -> Graph:
    """The nodes of a small JAX function on operands."""
    examples = [jax.ShapeDtypeStruct(operand.shape, operand.dtype) for operand in operands]
    return _inline(jax.make_jaxpr(function)(*examples), operands, source)


def _source(eqn, outer: Source) -> Source:
    stack = str(eqn.source_info.name_stack)
    if outer.module and not stack.startswith(outer.module):
        stack = f"{outer.module}/{stack}" if stack else outer.module
    return Source(
        primitive=eqn.primitive.name,
        region=outer.region,
        module=stack,
        line=_line(eqn) or outer.line,
        float32=outer.float32,
    )


def _line(eqn) -> str:
    """file:line of the innermost frame outside installed packages and the region mark itself."""
    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
    own = [frame for frame in frames if not _is_plumbing(frame.file_name)]
    for frame in own or frames:
        return f"{_relative(frame.file_name)}:{frame.start_line}"
    return ""


def _is_plumbing(file: str) -> bool:
    return "site-packages" in file or file in (regions.__file__, __file__)


def _relative(file: str) -> str:
    """The path below the import path that it was found on: the same on every machine."""
    roots = [root for root in map(os.path.abspath, sys.path) if file.startswith(root + os.sep)]
    return os.path.relpath(file, max(roots, key=len)) if roots else os.path.basename(file)
