"""Shapes and dtypes of the results of each ttnn op. Standard library only."""

import math

from lowering.ir import FLOATS, TILE, DType, Value

Typed = tuple[tuple[int, ...], DType]


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Numpy's broadcast of shapes; ValueError when they do not fit."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        size = max(sizes) if 0 not in sizes else 0
        if any(other not in (1, size) for other in sizes):
            raise ValueError(f"shapes {shapes} do not broadcast")
        result.append(size)
    return tuple(result)


def same(values, attrs) -> list[Typed]:
    return [(values[0].shape, attrs.get("dtype", values[0].dtype))]


def elementwise(values, attrs) -> list[Typed]:
    dtype = attrs.get("dtype", values[0].dtype)
    if not widens(values, dtype):
        text = ", ".join(map(str, values))
        raise ValueError(f"ttnn repeats a row of {text} wrongly when it writes {dtype}")
    return [(broadcast(*(value.shape for value in values)), dtype)]


def widens(values, dtype: DType) -> bool:
    """Whether an op of these operands can write the dtype.

    Of two bfloat16 operands, one of them a row that is repeated, ttnn makes no float32: the numbers
    are wrong.
    """
    narrow = all(value.dtype in ("bfloat16", "bfloat8_b") for value in values)
    rows = {(1, 1, *value.shape)[-2] for value in values}
    return dtype != "float32" or not narrow or len(rows) == 1


def quotient(values, attrs) -> list[Typed]:
    ((shape, dtype),) = elementwise(values, attrs)
    return [(shape, dtype if dtype in FLOATS else "float32")]


def where(values, attrs) -> list[Typed]:
    branch = values[-1] if len(values) > 1 else values[0]
    return [(broadcast(*(value.shape for value in values)), branch.dtype)]


def matmul(values, attrs) -> list[Typed]:
    a, b = values[0].shape, values[1].shape
    a = (*a[:-2], a[-1], a[-2]) if attrs.get("transpose_a") else a
    b = (*b[:-2], b[-1], b[-2]) if attrs.get("transpose_b") else b
    if a[-1] != b[-2]:
        raise ValueError(
            f"matmul of {values[0]} and {values[1]}: inner sizes {a[-1]} and {b[-2]} differ"
        )
    return [((*broadcast(a[:-2], b[:-2]), a[-2], b[-1]), attrs.get("dtype", values[0].dtype))]


def sparse_matmul(values, attrs) -> list[Typed]:
    """a [1, 1, M, K] times every matrix of b [1, E, K, N]: [1, 1, 1, E, M, N], or, with
    `is_input_a_sparse`, a [1, E, M, K] times its own: [1, E, M, N].

    `sparsity` [1, 1, 1, E], bfloat16, is 0 for products that are left out: zeros. With `indices`
    [1, 1, 1, n], uint16, n matrices of b are taken, in that order.
    """
    a, b, sparsity, *rest = values
    count = rest[0].shape[-1] if rest else b.shape[1]
    paired = bool(attrs.get("is_input_a_sparse"))
    fits = (
        a.shape[:2] == (1, count if paired else 1)
        and (b.shape[0], b.shape[2]) == (1, a.shape[3])
        and (sparsity.shape, sparsity.dtype) == ((1, 1, 1, b.shape[1]), "bfloat16")
        and all((ids.shape, ids.dtype) == ((1, 1, 1, count), "uint16") for ids in rest)
        and count <= b.shape[1]
    )
    if not fits:
        text = ", ".join(map(str, values))
        raise ValueError(f"sparse_matmul of {text}: shapes or dtypes do not fit")
    lead = (1, count) if paired else (1, 1, 1, count)
    return [((*lead, a.shape[2], b.shape[3]), attrs.get("dtype", a.dtype))]


def attention(values, attrs) -> list[Typed]:
    """Queries [B, N, S, H]; keys and values [B, M, T, H]; a mask [B or 1, N or 1, S, T]."""
    (q, k, v), mask = values[:3], values[3:]
    (batch, heads, steps, width), (_, groups, keys, _) = q.shape, k.shape
    if k.shape != v.shape or k.shape != (batch, groups, keys, width) or heads % groups:
        raise ValueError(f"attention of {q}, {k} and {v}: shapes do not fit")
    if mask and broadcast(mask[0].shape, (batch, heads, steps, keys))[2:] != mask[0].shape[2:]:
        raise ValueError(f"attention of {q} and {k} with the mask {mask[0]}: shapes do not fit")
    if mask and keys % TILE:
        raise ValueError(f"attention under a mask counts the padding of {k}; keys must fill tiles")
    return [(q.shape, q.dtype)]


def attention_decode(values, attrs) -> list[Typed]:
    """Queries [1, B, N, H]; keys and values [B, M, T, H]; a mask [B, 1, N, T]."""
    q, k, v, mask = values
    one, batch, heads, width = q.shape
    _, groups, keys, _ = k.shape
    if one != 1 or k.shape != v.shape or k.shape != (batch, groups, keys, width) or heads % groups:
        raise ValueError(f"attention of {q}, {k} and {v}: shapes do not fit")
    if mask.shape != (batch, 1, heads, keys):
        raise ValueError(f"attention of {q} and {k} with the mask {mask}: shapes do not fit")
    return [(q.shape, q.dtype)]


def fill_cache(values, attrs) -> list[Typed]:
    """Rows [1, M, S, H] become the first of a sequence's slots in a cache [B, M, T, H]."""
    cache, rows = values
    (batch, groups, slots, width), index = cache.shape, attrs["batch_idx"]
    fits = rows.shape[:2] + rows.shape[3:] == (1, groups, width) and rows.shape[2] <= slots
    if not fits or rows.dtype != cache.dtype or not 0 <= index < batch:
        raise ValueError(f"fill_cache of {cache} at {index} with {rows}: they do not fit")
    return [(cache.shape, cache.dtype)]


def update_cache(values, attrs) -> list[Typed]:
    """A row [1, B, M, H] for each sequence, at its slot [B] of a cache [B, M, T, H]."""
    cache, rows, slots = values
    batch, groups, _, width = cache.shape
    fits = rows.shape == (1, batch, groups, width) and slots.shape == (batch,)
    if not fits or rows.dtype != cache.dtype or slots.dtype != "int32":
        raise ValueError(f"update of {cache} at {slots} with {rows}: they do not fit")
    return [(cache.shape, cache.dtype)]


def copy(values, attrs) -> list[Typed]:
    source, target = values
    if (source.shape, source.dtype) != (target.shape, target.dtype):
        raise ValueError(f"copy of {source} to {target}: they differ")
    return [(target.shape, target.dtype)]


def _axes(rank: int, dim) -> list[int]:
    if dim is None:
        return list(range(rank))
    return sorted(axis % rank for axis in (dim if isinstance(dim, list | tuple) else [dim]))


def _reduced(shape: tuple[int, ...], attrs) -> tuple[int, ...]:
    axes = _axes(len(shape), attrs["dim"])
    if attrs.get("keepdim"):
        return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


def reduce(values, attrs) -> list[Typed]:
    return [(_reduced(values[0].shape, attrs), values[0].dtype)]


def argmax(values, attrs) -> list[Typed]:
    return [(_reduced(values[0].shape, attrs), "uint32")]


def _index_dtype(value: Value) -> DType:
    return "uint32" if value.dtype == "float32" else "uint16"


def topk(values, attrs) -> list[Typed]:
    (x,) = values
    shape = list(x.shape)
    shape[attrs["dim"]] = attrs["k"]
    return [(tuple(shape), x.dtype), (tuple(shape), _index_dtype(x))]


def sort(values, attrs) -> list[Typed]:
    (x,) = values
    return [(x.shape, x.dtype), (x.shape, _index_dtype(x))]


def gather(values, attrs) -> list[Typed]:
    return [(values[1].shape, values[0].dtype)]


def embedding(values, attrs) -> list[Typed]:
    ids, table = values
    return [((*ids.shape, table.shape[-1]), table.dtype)]


def _unblocked(dtype: DType, whole: bool) -> DType:
    """Block floats become bfloat16 where an op takes 32x32 tiles apart."""
    return "bfloat16" if dtype == "bfloat8_b" and not whole else dtype


def to_layout(values, attrs) -> list[Typed]:
    return [(values[0].shape, _unblocked(values[0].dtype, attrs["layout"] == "tile"))]


def concat(values, attrs) -> list[Typed]:
    dim = attrs["dim"] % len(values[0].shape)
    shape = list(values[0].shape)
    shape[dim] = sum(value.shape[dim] for value in values)
    whole = dim < len(shape) - 2 or all(value.shape[dim] % TILE == 0 for value in values)
    return [(tuple(shape), _unblocked(values[0].dtype, whole))]


def slice_(values, attrs) -> list[Typed]:
    spans = zip(attrs["begins"], attrs["ends"], attrs["steps"], strict=True)
    shape = tuple(max(0, -(-(end - begin) // step)) for begin, end, step in spans)
    whole = all(begin % TILE == 0 for begin in attrs["begins"][-2:]) and set(attrs["steps"]) == {1}
    return [(shape, _unblocked(values[0].dtype, whole))]


def pad(values, attrs) -> list[Typed]:
    sizes = zip(values[0].shape, attrs["padding"], strict=True)
    return [(tuple(low + size + high for size, (low, high) in sizes), values[0].dtype)]


def permute(values, attrs) -> list[Typed]:
    return [(tuple(values[0].shape[axis] for axis in attrs["dims"]), values[0].dtype)]


def reshape(values, attrs) -> list[Typed]:
    shape = tuple(attrs["shape"])
    if math.prod(shape) != math.prod(values[0].shape):
        raise ValueError(f"reshape of {values[0]} to {shape}: element counts differ")
    return [(shape, values[0].dtype)]


def expand(values, attrs) -> list[Typed]:
    shape = tuple(attrs["shape"])
    if broadcast(values[0].shape, shape) != shape:
        raise ValueError(f"expand of {values[0]} to {shape}")
    return [(shape, values[0].dtype)]
