"""Every op of the table against the real ttnn, on mock devices of both chips."""

import importlib.util
import json

import pytest

from lowering.backends.ttnn import check_many, check_mock, report_from_json
from lowering.ir import Op, Program, Source, Value
from lowering.isolate import ChildError
from lowering.mock import BOARDS
from lowering.ops import BINARY, COMPARISONS, OPS, UNARY, infer
from lowering.passes.matmul import configure_matmuls

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ttnn") is None, reason="needs ttnn (extra `device`, Linux x86-64)"
)

X, ROW, FLAT = (2, 40, 50), (2, 1, 50), (40, 50)
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
    ("add", [X, ROW], {"dtype": "float32", "activations": ["relu"]}),
    ("multiply", [X], {"scalar": 0.5, "activations": ["rsqrt"]}),
    ("eq", [X, ROW], {"dtype": "float32"}),
    ("rdiv", [X], {"scalar": 1.0}),
    ("prod", [X], {"dim": 1, "keepdim": True}),
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
    heads = [Value(name, (2, n, 50, 32), "bfloat16") for name, n in (("q", 4), ("k", 2), ("v", 2))]
    attrs = {"scale": 0.5, "program_config": chunks(32, 64), "is_causal": not mask}
    masks = [Value("mask", (1, 1, 50, 50), "bfloat16")] if mask else []
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


def complaints(reports):
    return [f"{report.program}: {error}" for report in reports for error in report.errors]


@pytest.mark.parametrize("arch", BOARDS)
def test_table_agrees_with_ttnn(arch):
    programs = [program_of(*case, dtype) for case in CASES for dtype in ("float32", "bfloat16")]
    programs += [program_of(*case, "int32") for case in INTEGER_CASES]
    programs += [program_of(*case, "bfloat8_b") for case in BLOCKS]
    programs += [embedding(), attention(mask=False), attention(mask=True)]
    programs += [chosen(named, paired, arch) for named in (True, False) for paired in (True, False)]
    programs += [*caches("float32"), *caches("bfloat16"), decode_attention()]
    reports = check_many(programs, arch)
    assert complaints(reports) == []
    assert {report.arch for report in reports} == {arch}
    assert {op.name for program in programs for op in program.ops} == set(OPS)


def test_report_counts_programs_and_memory():
    values = (Value("x", (32, 336, 7), "bfloat16"), Value("w", (1, 384, 336), "bfloat16"))
    heads = Value("heads", (32, 384, 7), "bfloat16", memory="l1")
    view = Value("view", (32, 4, 96, 7), "bfloat16", memory="l1")
    ops = (
        Op("matmul", ("w", "x"), (heads,), frees=("x",)),
        Op("reshape", ("heads",), (view,), {"shape": [32, 4, 96, 7]}, frees=("heads",)),
        Op("exp", ("view",), (Value("y", (32, 4, 96, 7), "bfloat16"),), frees=("view",)),
    )
    report = check_mock(Program("p", values[:1], values[1:], ops, ("y",)), "wormhole_b0")
    assert report.ok
    assert [op.programs for op in report.ops] == [("Matmul",), (), ("Unary",)]
    assert (report.device_programs, report.ttnn_ops, report.layout_conversions) == (2, 3, 0)
    assert report.host_ops == ()
    tile, tiles_in_l1 = 2048, 32 * 12
    per_core = tiles_in_l1 // 64 * tile
    assert report.peak_l1_bytes_per_core > per_core
    assert report.ops[1].l1_bytes_per_core == per_core
    assert report.dram_bytes >= (12 * 11 + 32 * 12) * tile
    assert report_from_json(json.loads(json.dumps(report.to_json()))) == report
    assert report.launches()[1] == ()


def test_rejected_op_is_named_and_the_rest_is_checked():
    x, table = Value("x", (4, 8), "float32"), Value("i", (4, 8), "int32")
    ops = (
        Op("mean", ("i",), (Value("m", (4, 1), "int32"),), {"dim": 1, "keepdim": True}),
        Op("exp", ("x",), (Value("e", (4, 8), "float32"),), source=Source(module="Model/exp")),
        Op("add", ("e", "m"), (Value("y", (4, 8), "float32"),)),
    )
    report = check_mock(Program("p", (x, table), (), ops, ("y",)), "blackhole")
    assert not report.ok
    assert len(report.errors) == 2
    assert report.errors[0].startswith("op 0 mean: ttnn.mean does not support integer inputs")
    assert report.errors[1].startswith("op 2 add")
    assert report.ops[1].ok


def test_other_result_than_stated_is_an_error():
    x = Value("x", (2, 3), "float32")
    stated = Value("y", (2, 3), "float32", layout="row_major")
    op = Op("exp", ("x",), (stated,))
    report = check_mock(Program("p", (x,), (), (op,), ("y",)), "wormhole_b0")
    assert report.errors == ("op 0 exp: gives y:float32[2,3]; expected y:float32[2,3] rm",)


def test_too_large_for_l1_is_an_error():
    x = Value("x", (8192, 8192), "bfloat16", memory="l1")
    report = check_mock(single("exp", (x,), {}), "wormhole_b0")
    assert "do not fit the device" in report.errors[0]
    assert "Out of Memory" in report.errors[0]


def test_inconsistent_program_costs_only_itself():
    good = single("exp", (Value("x", (2, 3), "float32"),), {})
    bad = good.replace(outputs=("nothing",))
    first, second = check_many([bad, good], "wormhole_b0")
    assert "'nothing' is used before it is defined" in first.errors[0]
    assert second.ok


def test_programs_leave_no_memory_behind():
    # more than half of the chip's L1 each, and every second one is rejected
    x = Value("x", (5120, 5120), "bfloat16", memory="l1")
    fine = single("slice", (x,), {"begins": [0, 0], "ends": [32, 32], "steps": [1, 1]})
    index = Value("i", (4, 8), "int32")
    op = Op("mean", ("i",), (Value("m", (4, 1), "int32"),), {"dim": 1, "keepdim": True})
    rejected = Program("p", (x, index), (), (op,), ("m",))
    reports = check_many([fine, rejected] * 3, "wormhole_b0")
    assert [report.ok for report in reports] == [True, False] * 3
    assert all("does not support integer" in report.errors[0] for report in reports[1::2])


def test_unknown_chip():
    program = single("exp", (Value("x", (2, 3), "float32"),), {})
    with pytest.raises(ValueError, match="unknown chip 'grayskull'"):
        check_mock(program, "grayskull")


def test_folder_that_cannot_be_run_says_why(tmp_path):
    from lowering.backends.ttnn import run_folder

    with pytest.raises(ChildError, match="is not a folder"):
        run_folder(tmp_path / "nothing", timeout=60)
