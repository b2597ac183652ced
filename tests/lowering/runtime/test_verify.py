"""What a program must satisfy before anything of it runs."""

import dataclasses

import pytest

from lowering.ir import Op, Value
from lowering.runtime.verify import verify


def change_op(program, index, **changes):
    ops = list(program.ops)
    ops[index] = dataclasses.replace(ops[index], **changes)
    return program.replace(ops=tuple(ops))


def test_the_small_program_is_fine(small):
    verify(small.program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.replace(policy="fp4"), "policy is 'fp4'; allowed are float32, bfloat16"),
        (lambda p: p.replace(arch="grayskull"), "arch is 'grayskull'"),
        (lambda p: p.replace(outputs=("nothing",)), "outputs: value 'nothing' is used before"),
        (lambda p: p.replace(inputs=p.inputs * 2), "'x' is defined twice"),
        (lambda p: change_op(p, 0, name="os.system"), "op 0 .*'os.system' is not in the table"),
        (lambda p: change_op(p, 0, attrs={"program_config": 1}), "takes no attr"),
        (lambda p: change_op(p, 0, inputs=("x",)), "takes 2 to 3 tensors, got 1"),
        (lambda p: change_op(p, 1, inputs=("later", "scale")), "'later' is used before"),
        (
            lambda p: change_op(p, 0, frees=("hidden",)),
            r"op 1 .*'hidden' is used after it is freed",
        ),
        (lambda p: change_op(p, 3, frees=("best",)), "outputs: value 'best' is used after"),
        (lambda p: change_op(p, 3, attrs={"k": 2}), "op 3 .*'dim'"),
        (
            lambda p: change_op(p, 1, outputs=(Value("scaled", (4, 9), "float32"),)),
            r"op 1 \(multiply, .*stated as .*\(4, 9\).* must be .*\(4, 8\)",
        ),
        (
            lambda p: change_op(p, 1, outputs=(Value("scaled", (4, 8), "float64"),)),
            "float64",
        ),
    ],
)
def test_what_is_wrong_is_named(small, change, message):
    with pytest.raises(ValueError, match=message):
        verify(change(small.program))


def test_layouts_count_only_when_they_are_placed(small):
    value = Value("x", (4, 6), "float32", layout="row_major")
    program = small.program.replace(inputs=(value, small.program.inputs[1]))
    verify(program, layouts=False)
    with pytest.raises(ValueError, match=r"needs x:float32.* in tile layout"):
        verify(program)


def test_converting_the_layout_is_allowed_from_any(small):
    op = Op(
        "to_layout",
        ("x",),
        (Value("rows", (4, 6), "float32", layout="row_major"),),
        {"layout": "row_major"},
    )
    verify(small.program.replace(ops=(op, *small.program.ops)))
