"""A session on a numpy stand-in for ttnn: results, uploads, checks of inputs."""

import dataclasses

import numpy as np
import pytest

from lowering.ir import Program, Value
from lowering.runtime import Session, open_device


def test_run_gives_the_programs_results(fake, small):
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        for seed in range(2):
            inputs = small.batch(seed)
            found = session.run(inputs)
            for a, b in zip(found, small.expected(inputs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)
    assert device.log[-1] == ("close",)


def test_callback_sees_every_op_with_its_results(fake, small):
    seen = []
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        session.run(
            small.batch(0),
            lambda index, op, results: seen.append((index, op.name, [r.shape for r in results])),
        )
    assert seen == [
        (0, "linear", [(4, 8)]),
        (1, "multiply", [(4, 8)]),
        (2, "reshape", [(2, 2, 8)]),
        (3, "topk", [(4, 2), (4, 2)]),
    ]


@pytest.mark.parametrize(("fidelity", "expected"), [(None, "HiFi4"), ("HiFi2", "HiFi2")])
def test_another_fidelity_serves_every_op(fake, small, monkeypatch, fidelity, expected):
    seen, linear = [], fake.linear

    def spy(*operands, compute_kernel_config, **rest):
        seen.append(compute_kernel_config["math_fidelity"])
        return linear(*operands, compute_kernel_config=compute_kernel_config, **rest)

    monkeypatch.setattr(fake, "linear", spy)
    with open_device() as device:
        Session(small.program, small.weights, device, fidelity=fidelity).run(small.batch(0))
    assert seen == [expected]


def test_weights_go_where_the_program_says(fake, small):
    with open_device() as device:
        session = Session(small.program, small.weights, device)
    there = {value.name: tensor for value, tensor in session.resident.items()}
    assert there["bias"].memory_config() is fake.L1_MEMORY_CONFIG
    assert there["kernel"].memory_config() is fake.DRAM_MEMORY_CONFIG
    assert there["kernel"].layout == fake.TILE_LAYOUT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((4, 5), np.float32)}, r"'x' has shape \(4, 5\); the program takes x:float"),
        ({"x": np.zeros((4, 6), complex)}, "'x' has dtype complex128"),
        ({"x": None}, r"missing: \['x'\]"),
        ({"z": np.zeros(3)}, r"unknown: \['z'\]; it takes x:float32\[4,6\], scale"),
    ],
)
def test_unfit_inputs_are_named(fake, small, change, message):
    inputs = {k: v for k, v in {**small.batch(0), **change}.items() if v is not None}
    with open_device() as device:
        session = Session(small.program, small.weights, device)
        with pytest.raises(ValueError, match=message):
            session.run(inputs)


def test_float64_and_integers_are_accepted_for_float_inputs(fake, small):
    inputs = {"x": np.ones((4, 6), np.int64), "scale": np.float64(2)}
    with open_device() as device:
        found = Session(small.program, small.weights, device).run(inputs)
    np.testing.assert_allclose(found[0], small.expected(inputs)[0], rtol=1e-6)


def test_missing_weight_is_named(fake, small):
    with open_device() as device, pytest.raises(ValueError, match=r"\['bias'\]"):
        Session(small.program, {"kernel": small.weights["kernel"]}, device)


def test_inconsistent_program_never_starts(fake, small):
    first, *rest = small.program.ops
    bad = dataclasses.replace(first, outputs=(Value("hidden", (4, 9), "float32"),))
    program = small.program.replace(ops=(bad, *rest))
    with open_device() as device, pytest.raises(ValueError, match=r"op 0 \(linear"):
        Session(program, small.weights, device)


def test_scalar_branches_of_where_keep_their_places(fake, tools):
    values = (Value("c", (2, 3), "float32"), Value("t", (2, 3), "float32"))
    ops = tools.chain(
        values,
        [
            ("where", ["c", "t"], ["a"], {"true_scalar": 5.0}),
            ("where", ["c", "t"], ["b"], {"false_scalar": -1.0}),
            ("where", ["c"], ["d"], {"true_scalar": 1.0, "false_scalar": 0.0}),
            ("concat", ["a", "b", "d"], ["y"], {"dim": 0}),
        ],
    )
    program = Program("p", values, (), ops, ("y",))
    condition = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    other = np.arange(6, dtype=np.float32).reshape(2, 3)
    with open_device() as device:
        (found,) = Session(program, {}, device).run({"c": condition, "t": other})
    expected = [
        np.where(condition, 5, other),
        np.where(condition, other, -1),
        condition,
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_activations_are_applied(fake, tools):
    values = (Value("x", (3, 3), "float32"),)
    ops = tools.chain(values, [("multiply", ["x"], ["y"], {"scalar": -1, "activations": ["relu"]})])
    x = np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)
    with open_device() as device:
        (found,) = Session(Program("p", values, (), ops, ("y",)), {}, device).run({"x": x})
    np.testing.assert_array_equal(found, np.maximum(-x, 0))
