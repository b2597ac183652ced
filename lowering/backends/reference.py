"""Runs a Program on the host with numpy: exactly, or with the rounding of the device.

`exact`: float32 arithmetic, whatever dtypes the program names. `device`: every value is held in its
device dtype, and ops round as ttnn was measured to round on the Wormhole simulator (see
numerics.py), so that device error is predicted before a device is there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lowering.backends import numerics
from lowering.backends.results import emulated, exact, typed
from lowering.ir import Op, Program, Value

Mode = Literal["exact", "device"]
OnOp = Callable[[Op, Sequence[np.ndarray]], None]


def run(
    program: Program,
    inputs: Mapping[str, Any],
    mode: Mode = "exact",
    on_op: OnOp | None = None,
    state: dict[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The program's results. `on_op` sees each op with its results, for comparing op by op.

    `state` holds numbers by name (zeros where it holds none), and the new ones after the run.
    """
    state = {} if state is None else state
    env = {v.name: _held(program.arrays[v.name], v, mode) for v in program.weights}
    env |= {v.name: _held(state.get(v.name, np.zeros(v.shape)), v, mode) for v in program.state}
    env |= {v.name: _held(_input(inputs, v), v, mode) for v in program.inputs}
    values = program.values()
    with np.errstate(all="ignore"):
        for op in program.ops:
            operands = [env[name] for name in op.inputs]
            if mode == "device":
                results = emulated(op, operands, [values[name] for name in op.inputs])
            else:
                results = exact(op, operands)
            env |= {value.name: r for value, r in zip(op.outputs, results, strict=True)}
            if on_op is not None:
                on_op(op, results)
            for name in op.frees:
                del env[name]
    state |= {v.name: env[name] for v, name in zip(program.state, program.kept, strict=True)}
    return [env[name] for name in program.outputs]


class HostSession:
    """A program that runs here as `lowering.runtime.Session` runs it on a device."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, np.ndarray],
        mode: Mode = "device",
        shared: "HostSession | None" = None,
    ):
        """`shared`: a session whose state of the same name serves this one as well."""
        self.program = program.replace(arrays=weights)
        self.numbers: dict[str, np.ndarray] = shared.numbers if shared is not None else {}
        self._mode: Mode = mode

    def run(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Outputs for inputs by name; state moves on."""
        return run(self.program, inputs, self._mode, state=self.numbers)

    def reset(self) -> None:
        """Zeros for all state."""
        self.numbers.clear()

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give state by name its numbers."""
        self.numbers |= arrays

    def state(self) -> dict[str, np.ndarray]:
        """State by name."""
        return {v.name: self.numbers.get(v.name, np.zeros(v.shape)) for v in self.program.state}


def _held(array: Any, value: Value, mode: Mode) -> np.ndarray:
    array = typed(np.asarray(array), value)
    return numerics.round_to(array, value.dtype) if mode == "device" else array


def _input(inputs: Mapping[str, Any], value: Value) -> Any:
    if value.name not in inputs:
        raise ValueError(f"input {value.name!r} is missing; got {', '.join(inputs)}")
    array = inputs[value.name]
    if tuple(np.shape(array)) != value.shape:
        raise ValueError(
            f"input {value.name!r} has shape {np.shape(array)}, expected {value.shape}"
        )
    return array
