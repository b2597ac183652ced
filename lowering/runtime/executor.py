"""Runs a Program op by op on a ttnn device."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np

from lowering.ir import Op, Program, Value
from lowering.ops import Fidelity
from lowering.runtime import calls
from lowering.runtime.calls import Call, Token, make_call
from lowering.runtime.devices import arch_name, import_ttnn
from lowering.runtime.tensors import layout, memory, to_device, to_host_tensor, to_numpy
from lowering.runtime.verify import verify

OnOp = Callable[[int, Op, Sequence[Any]], None]


class Session:
    """A program whose weights lie on the device, and its state, which starts as zeros.

    `run` takes and returns numpy arrays; `upload`, `execute` and `download` are its three steps.
    Values are freed at their last use by dropping the reference, never by `ttnn.deallocate`: a
    reshape that costs nothing shares its input's memory.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, np.ndarray],
        device: Any,
        shared: "Session | None" = None,
        fidelity: Fidelity | None = None,
    ):
        """Checks the program and uploads the weights; ValueError for a weight that is missing, and
        for a device that is another chip than the program's.

        `shared`: a session whose weights and state of the same name serve this one as well.
        `fidelity`: of every op that multiplies, instead of its own: fewer passes are faster.
        """
        ttnn = import_ttnn()
        verify(program)
        if (found := arch_name(device)) != program.arch:
            raise ValueError(
                f"the program {program.name!r} is for {program.arch}, the device is {found}; lower"
                f" it with --arch {found}"
            )
        missing = [value.name for value in program.weights if value.name not in weights]
        if missing:
            raise ValueError(f"no array for the weights {missing}")
        self.program = program
        self.device = device
        self._ttnn = ttnn
        self._caller = Caller(ttnn, device, fidelity)
        known = program.values()
        self._calls = [make_call(op, known) for op in program.ops]
        there = shared.resident if shared is not None else {}
        self.resident: dict[Value, Any] = {
            value: there[value]
            if value in there
            else to_device(ttnn, weights[value.name], value, device)
            for value in program.weights
        }
        self.resident |= {value: there[value] for value in program.state if value in there}
        missing = [value for value in program.state if value not in there]
        self.set_state({value.name: np.zeros(value.shape) for value in missing})

    def run(self, inputs: Mapping[str, np.ndarray], on_op: OnOp | None = None) -> list[np.ndarray]:
        """Outputs (float32 or integers) for inputs by name; ValueError for unfit inputs."""
        return self.download(self.execute(self.upload(inputs), on_op))

    def upload(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The inputs on the device."""
        check_names(self.program.inputs, inputs)
        return {
            value.name: to_device(self._ttnn, inputs[value.name], value, self.device)
            for value in self.program.inputs
        }

    def execute(self, inputs: Mapping[str, Any], on_op: OnOp | None = None) -> list[Any]:
        """Output tensors on the device; `on_op(index, op, results)` sees each op's results."""
        values = {value.name: tensor for value, tensor in self.resident.items()} | dict(inputs)
        for index, (op, call) in enumerate(zip(self.program.ops, self._calls, strict=True)):
            results = self._caller.perform(call, values)
            if on_op is not None:
                on_op(index, op, results)
            values.update(zip((value.name for value in op.outputs), results, strict=True))
            del results
            for name in op.frees:
                del values[name]
        return [values[name] for name in self.program.outputs]

    def set_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Give state by name its numbers; ValueError for a name that is no state."""
        state = {value.name: value for value in self.program.state}
        if unknown := sorted(set(arrays) - set(state)):
            raise ValueError(f"{unknown} are no state of the program; it has {', '.join(state)}")
        for name, array in arrays.items():
            value = state[name]
            if value not in self.resident:
                self.resident[value] = to_device(self._ttnn, array, value, self.device)
            else:
                host = to_host_tensor(self._ttnn, array, value)
                self._ttnn.copy_host_to_device_tensor(host, self.resident[value])

    def reset(self) -> None:
        """Zeros for all state."""
        self.set_state({value.name: np.zeros(value.shape) for value in self.program.state})

    def state(self) -> dict[str, np.ndarray]:
        """State by name as numpy arrays."""
        return {
            value.name: to_numpy(self._ttnn, self.resident[value]) for value in self.program.state
        }

    def download(self, tensors: Sequence[Any]) -> list[np.ndarray]:
        """Output tensors as numpy arrays."""
        return [to_numpy(self._ttnn, tensor) for tensor in tensors]


class Caller:
    """Performs calls on one device."""

    def __init__(self, ttnn: Any, device: Any, fidelity: Fidelity | None = None):
        self._ttnn = ttnn
        self._configs = {
            name: compute_config(ttnn, fidelity or name) for name in get_args(Fidelity)
        }
        self._size = device.compute_with_storage_grid_size()
        self._grid = ttnn.CoreGrid(y=self._size.y, x=self._size.x)

    def perform(self, call: Call, values: Mapping[str, Any]) -> list[Any]:
        """The result tensors of one call on tensors by name."""
        function = operator.attrgetter(call.function)(self._ttnn)
        positional = [self._evaluate(token, values) for token in call.positional]
        keywords = {key: self._evaluate(token, values) for key, token in call.keywords.items()}
        result = function(*positional, **keywords)
        return list(result) if isinstance(result, list | tuple) else [result]

    def _evaluate(self, token: Token, values: Mapping[str, Any]) -> Any:
        ttnn = self._ttnn
        match token:
            case calls.Tensor(name):
                return values[name]
            case calls.Tensors(names):
                return [values[name] for name in names]
            case calls.Constant(value):
                return value
            case calls.DTypeName(name):
                return getattr(ttnn, name)
            case calls.LayoutName(name):
                return layout(ttnn, name)
            case calls.Activations(names):
                kinds = [getattr(ttnn.UnaryOpType, name.upper()) for name in names]
                return [ttnn.UnaryWithParam(kind) for kind in kinds]
            case calls.FullGrid():
                return self._grid
            case calls.ComputeConfig(fidelity):
                return self._configs[fidelity]
            case calls.ProgramConfig(fields, cores):
                size = ttnn.CoreCoord(*cores) if cores else self._size
                return ttnn.MatmulMultiCoreReuseMultiCast1DProgramConfig(
                    compute_with_storage_grid_size=size, fused_activation=None, **fields
                )
            case calls.AttentionConfig(fields):
                return ttnn.SDPAProgramConfig(
                    compute_with_storage_grid_size=self._size, exp_approx_mode=False, **fields
                )
            case calls.MemoryName(name):
                return memory(ttnn, name)
            case calls.Rows(count, height, width):
                return rows_on_cores(ttnn, self._size, count, height, width)


def compute_config(ttnn: Any, fidelity: Fidelity) -> Any:
    """float32 accumulation and no approximate functions (either chip)."""
    return ttnn.WormholeComputeKernelConfig(
        math_fidelity=getattr(ttnn.MathFidelity, fidelity),
        math_approx_mode=False,
        fp32_dest_acc_en=True,
        packer_l1_acc=True,
    )


def rows_on_cores(ttnn: Any, size: Any, count: int, height: int, width: int) -> Any:
    """The memory config of a tensor cut into blocks of rows, one in the L1 of each core."""
    return ttnn.create_sharded_memory_config(
        (height, width),
        core_grid=ttnn.num_cores_to_corerangeset(count, size, True),
        strategy=ttnn.ShardStrategy.HEIGHT,
        use_height_and_width_as_shard_shape=True,
    )


def check_names(expected: Sequence[Value], found: Mapping[str, Any]) -> None:
    """ValueError unless the inputs are exactly those of the program."""
    names = [value.name for value in expected]
    missing, unknown = [n for n in names if n not in found], sorted(set(found) - set(names))
    if missing or unknown:
        wants = ", ".join(map(str, expected))
        raise ValueError(f"inputs missing: {missing}, unknown: {unknown}; it takes {wants}")
