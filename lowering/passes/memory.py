"""Which tensors live in L1, next to the cores."""

from lowering.ir import Arch, Program, Value

# Bytes of L1 a core that interleaved tensors may take together; the rest is left for the circular
# buffers of the running program. Free L1 of a core: 1,393,312 (Wormhole), 1,461,120 (Blackhole).
BUDGET = {"wormhole_b0": 700_000, "blackhole": 750_000}
CORES = {"wormhole_b0": 64, "blackhole": 110}


def place_in_l1(program: Program) -> Program:
    """Everything in L1 when weights and the live values fit together, else everything in DRAM.

    Results stay in DRAM: the host reads them there.
    """
    if peak_bytes_per_core(program) > BUDGET[program.arch]:
        return program
    results = set(program.outputs)

    def place(value: Value) -> Value:
        return Value(value.name, value.shape, value.dtype, value.layout, "l1")

    def place_result(value: Value) -> Value:
        return value if value.name in results else place(value)

    return program.replace(
        inputs=tuple(map(place, program.inputs)),
        weights=tuple(map(place, program.weights)),
        ops=tuple(op.replace(outputs=tuple(map(place_result, op.outputs))) for op in program.ops),
    )


def peak_bytes_per_core(program: Program) -> int:
    """The most bytes that are live at once, spread evenly over the cores page by page."""
    sizes = {name: bytes_per_core(value, program.arch) for name, value in program.values().items()}
    resident = sum(sizes[value.name] for value in (*program.inputs, *program.weights))
    last_use = {name: uses[-1] for name, uses in program.uses().items()}
    live, peak = 0, 0
    for index, op in enumerate(program.ops):
        live += sum(sizes[value.name] for value in op.outputs)
        peak = max(peak, live)
        produced = {value.name for earlier in program.ops[: index + 1] for value in earlier.outputs}
        live -= sum(sizes[n] for n in produced if last_use.get(n, -1) == index)
    return resident + peak


def bytes_per_core(value: Value, arch: Arch) -> int:
    """Bytes of an interleaved tensor in the fullest bank."""
    pages = max(1, -(-value.num_bytes() // _page_bytes(value)))
    return -(-pages // CORES[arch]) * _page_bytes(value)


def _page_bytes(value: Value) -> int:
    if value.layout == "tile":
        return Value("page", (32, 32), value.dtype).num_bytes()
    last = value.shape[-1] if value.shape else 1
    return max(1, Value("page", (1, last), value.dtype, "row_major").num_bytes())
