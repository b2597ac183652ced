"""Every op of the table as a program of its own, on shapes that fill no tile."""

from collections.abc import Iterator

from lowering.ir import Arch, Op, Program, Source, Value
from lowering.ops import BINARY, COMPARISONS, OPS, UNARY, infer
from lowering.passes.matmul import configure_matmuls

X, ROW, COLUMN, FLAT = (2, 40, 50), (2, 1, 50), (2, 40, 1), (40, 50)
MATRIX, VECTOR = (50, 70), (1, 70)
PLAIN = [(name, [X], {}) for name in UNARY]
PAIRS = [
    case
    for name in (*BINARY, *COMPARISONS, "divide", "floor_div", "fmod")
    for case in ((name, [X, ROW], {}), (name, [X], {"scalar": 2.0}))
]
REDUCTIONS = [
    (name, [X], {"dim": dim, "keepdim": keepdim})
    for name in ("sum", "mean", "max", "min")
    for dim, keepdim in ((1, True), ([0, 2], False), (None, False))
]
CASES = [
    *PLAIN,
    *PAIRS,
    *REDUCTIONS,
    ("add", [X, X], {"dtype": "float32", "activations": ["relu"]}),
    ("add", [X, ROW], {"dtype": "bfloat16", "activations": ["relu"]}),
    ("multiply", [X], {"scalar": 0.5, "activations": ["rsqrt"]}),
    ("eq", [X, COLUMN], {"dtype": "float32"}),
    ("rdiv", [X], {"scalar": 1.0}),
    ("var", [X], {"dim": 1, "keepdim": True, "correction": False}),
    ("clamp", [X], {"min": 0.0, "max": 1.0}),
    ("gelu", [X], {"fast_and_approximate_mode": False}),
    ("where", [X, ROW, X], {}),
    ("where", [X, ROW], {"true_scalar": 1.0}),
    ("where", [X, ROW], {"false_scalar": 1.0}),
    ("where", [X], {"true_scalar": 1.0, "false_scalar": 0.0}),
    ("addcmul", [ROW, X, ROW], {}),
    ("matmul", [X, MATRIX], {"dtype": "float32"}),
    ("matmul", [(1, 30, 40), X], {}),
    ("matmul", [X, (2, 40, 30)], {"transpose_a": True}),
    ("matmul", [X, (70, 50)], {"transpose_b": True}),
    ("linear", [FLAT, MATRIX], {"activation": "silu", "core_grid": "full"}),
    ("linear", [X, MATRIX, VECTOR], {"activation": "relu", "core_grid": "full"}),
    ("softmax", [X], {"dim": 1, "numeric_stable": True}),
    ("rms_norm", [X, (1, 50)], {"epsilon": 1e-6}),
    ("layer_norm", [X, (1, 50), (1, 50)], {"epsilon": 1e-6}),
    ("argmax", [X], {"dim": -1, "keepdim": True}),
    ("argmax", [X], {"dim": 1, "keepdim": False}),
    ("cumsum", [X], {"dim": 1}),
    ("cumsum", [X], {"dim": 2, "reverse_order": True}),
    ("cumprod", [X], {"dim": 1}),
    ("topk", [X], {"k": 3, "dim": -1, "largest": True, "sorted": True, "stable": True}),
    ("topk", [X], {"k": 3, "dim": 1, "largest": False, "sorted": True, "stable": True}),
    ("sort", [X], {"dim": -1, "descending": True, "stable": True}),
    ("gather", [X, ("uint32", (2, 3, 50))], {"dim": 1}),
    ("concat", [X, X, X], {"dim": 1}),
    ("slice", [X], {"begins": [0, 3, 0], "ends": [2, 40, 50], "steps": [1, 2, 1]}),
    ("pad", [X], {"padding": [[0, 0], [0, 8], [0, 1]], "value": 0.0}),
    ("permute", [X], {"dims": [2, 0, 1]}),
    ("reshape", [X], {"shape": [80, 50]}),
    ("expand", [ROW], {"shape": [2, 40, 50]}),
    ("typecast", [X], {"dtype": "int32"}),
    ("to_layout", [X], {"layout": "row_major"}),
]
INTEGER_CASES = [
    *((name, [X, ROW], {}) for name in ("add", "subtract", "multiply", "maximum", "eq", "lt")),
    ("eq", [X, ROW], {"dtype": "float32"}),
    ("remainder", [X], {"scalar": 3}),
    ("sum", [X], {"dim": 1, "keepdim": True}),
    ("max", [X], {"dim": 1, "keepdim": True}),
    ("where", [X, X, X], {}),
    ("reshape", [X], {"shape": [80, 50]}),
    ("permute", [X], {"dims": [2, 0, 1]}),
    ("concat", [X, X], {"dim": 2}),
    ("typecast", [X], {"dtype": "float32"}),
]


# block floats survive where tiles stay whole
BLOCKS = [
    ("concat", [(64, 32), (32, 32)], {"dim": 0}),
    ("concat", [(20, 32), (20, 32)], {"dim": 0}),
    ("concat", [(2, 20, 32), (2, 20, 32)], {"dim": 0}),
    ("slice", [(64, 64)], {"begins": [32, 0], "ends": [64, 40], "steps": [1, 1]}),
    ("slice", [(64, 64)], {"begins": [1, 0], "ends": [32, 64], "steps": [1, 1]}),
    ("matmul", [X, MATRIX], {}),
    ("softmax", [X], {"dim": -1}),
    ("reshape", [X], {"shape": [80, 50]}),
    ("permute", [X], {"dims": [1, 0, 2]}),
    ("pad", [X], {"padding": [[0, 0], [0, 0], [0, 14]], "value": 0.0}),
    ("sum", [X], {"dim": 1, "keepdim": True}),
    ("to_layout", [X], {"layout": "row_major"}),
]


def program_of(name, shapes, attrs, dtype):
    """A program of one op; operands are of `dtype` where they do not say theirs."""
    typed = [s if isinstance(s[0], str) else (dtype, s) for s in shapes]
    values = tuple(Value(f"v{i}", shape, kind) for i, (kind, shape) in enumerate(typed))
    return single(name, values, attrs)


def single(name, values, attrs):
    layout = attrs.get("layout") or OPS[name].result
    outputs = tuple(
        Value(f"y{i}", tuple(shape), kind, layout)
        for i, (shape, kind) in enumerate(infer(name, values, attrs))
    )
    op = Op(name, tuple(v.name for v in values), outputs, attrs, Source(module="Model/layer"))
    return Program(name, values, (), (op,), tuple(v.name for v in outputs))


def embedding():
    ids = Value("ids", (2, 16), "uint32", "row_major")
    table = Value("table", (100, 64), "bfloat16", "row_major")
    return single("embedding", (ids, table), {"layout": "tile"})


def attention(mask):
    keys = 64 if mask else 50
    sizes = (("q", 4, 50), ("k", 2, keys), ("v", 2, keys))
    heads = [Value(name, (2, n, steps, 32), "bfloat16") for name, n, steps in sizes]
    attrs = {"scale": 0.5, "program_config": chunks(32, 64), "is_causal": not mask}
    masks = [Value("mask", (1, 1, 50, 64), "bfloat16")] if mask else []
    return single("scaled_dot_product_attention", (*heads, *masks), attrs)


def chosen(named, paired, arch):
    """Three of six matrices by name, or a mask of all; so wide that the cores with work would not
    make up whole rows of the grid.
    """
    lead = (1, 3 if named else 6) if paired else (1, 1)
    values = (
        Value("a", (*lead, 32, 40), "float32" if paired else "bfloat16"),
        Value("stack", (1, 6, 40, 2400), "float32" if paired else "bfloat8_b"),
        Value("mask", (1, 1, 1, 6), "bfloat16", "row_major"),
        *([Value("names", (1, 1, 1, 3), "uint16", "row_major")] if named else []),
    )
    program = single("sparse_matmul", values, {"is_input_a_sparse": True} if paired else {})
    return configure_matmuls(program.replace(arch=arch))


def on_cache(name, dtype, others, attrs, before=()):
    """One op that writes a cache [2, 2, 64, 48] in place."""
    cache = Value("cache", (2, 2, 64, 48), dtype)
    written = Value("written", cache.shape, dtype)
    order = (*others, cache) if name == "copy" else (cache, *others)
    op = Op(name, tuple(value.name for value in order), (written,), attrs)
    given = tuple(value for value in others if value.memory == "dram")
    return Program(
        name, (*given, *before), (), (*_to_rows(before), op), (), state=(cache,), kept=("written",)
    )


def _to_rows(values):
    for value in values:
        rows = Value("rows", value.shape, value.dtype, memory="rows")
        yield Op("to_memory_config", (value.name,), (rows,))


def caches(dtype):
    """Programs that write a cache from its start, at computed slots, and whole."""
    first, whole = Value("x", (1, 2, 40, 48), dtype), Value("x", (2, 2, 64, 48), dtype)
    rows = Value("rows", (1, 2, 2, 48), dtype, memory="rows")
    slots = Value("slots", (2,), "int32", "row_major")
    new = Value("new", rows.shape, dtype)
    return [
        on_cache("fill_cache", dtype, (first,), {"batch_idx": 1}),
        on_cache("paged_update_cache", dtype, (rows, slots), {}, (new,)),
        on_cache("copy", dtype, (whole,), {}),
    ]


def decode_attention():
    shapes = {"q": (1, 2, 4, 64), "k": (2, 2, 96, 64), "v": (2, 2, 96, 64), "mask": (2, 1, 4, 96)}
    values = tuple(Value(name, shape, "bfloat16") for name, shape in shapes.items())
    attrs = {"scale": 0.5, "is_causal": False, "program_config": chunks(32, 32)}
    return single("scaled_dot_product_attention_decode", values, attrs)


def chunks(queries, keys):
    return {"q_chunk_size": queries, "k_chunk_size": keys}


def op_programs(arch: Arch) -> dict[str, Program]:
    """The programs by the text of their calls."""
    return {_call(program): program for program in _programs(arch)}


def _programs(arch: Arch) -> Iterator[Program]:
    for dtype in ("float32", "bfloat16"):
        yield from (program_of(*case, dtype) for case in CASES)
        yield from caches(dtype)
    yield from (program_of(*case, "int32") for case in INTEGER_CASES)
    yield from (program_of(*case, "bfloat8_b") for case in BLOCKS)
    yield from (embedding(), attention(mask=False), attention(mask=True), decode_attention())
    for named in (True, False):
        yield from (chosen(named, paired, arch) for paired in (True, False))


def _call(program: Program) -> str:
    """ "add(float32[2,40,50], float32[2,1,50], dtype='float32')"."""
    op, known = program.ops[-1], program.values()
    tensors = [str(known[name]).partition(":")[2] for name in op.inputs]
    attrs = [f"{key}={value!r}" for key, value in op.attrs.items() if key != "program_config"]
    return f"{op.name}({', '.join([*tensors, *attrs])})"
