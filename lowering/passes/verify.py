"""Checks a Program: names defined once and before use, shapes and dtypes as the op table says."""

from lowering.ir import Program
from lowering.ops import OPS, expected_outputs


def verify(program: Program, after: str) -> None:
    """AssertionError when the pass named `after` left an inconsistent Program (a bug)."""
    values = {value.name: value for value in (*program.inputs, *program.weights)}
    for op in program.ops:
        missing = [name for name in op.inputs if name not in values]
        assert not missing, f"after {after}: {op} reads undefined {missing}"
        typed = [(value.shape, value.dtype) for value in op.outputs]
        assert typed == expected_outputs(op, values), (
            f"after {after}: {op} should give {expected_outputs(op, values)}"
        )
        assert all(
            value.layout == OPS[op.name].result or op.name == "to_layout" for value in op.outputs
        )
        for value in op.outputs:
            assert value.name not in values, f"after {after}: {value.name} is defined twice"
            values[value.name] = value
    unknown = [name for name in program.outputs if name not in values]
    assert not unknown, f"after {after}: undefined outputs {unknown}"
