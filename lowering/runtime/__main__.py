"""Runs a saved program's sample on the device and compares the results with the expected ones.

    python -m lowering.runtime FOLDER [--bisect] [--json FILE]
    python -m lowering.runtime FOLDER --generate 1,5,9 --count 32 [--temperature 0.7 --seed 1]
    python -m lowering.runtime FOLDER --forecast series.csv --out forecast.csv [--samples 100]

With --generate the two programs of a language model continue a prompt of token numbers. With
--forecast the programs of a MOIRAI-MoE or a Chronos forecast every column of a CSV (or the arrays
target, known_ahead, past_only of an npz); OUT is a CSV of mean and quantiles, or an npz with all
samples.

The device is the one that tt-metal's environment variables choose; on a mock the numbers mean
nothing and are not judged. Exit status 1 when an output leaves the tolerance.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lowering.ir import Op
from lowering.runtime.devices import arch_name, device_kind, import_ttnn, open_device
from lowering.runtime.executor import Session
from lowering.runtime.folder import Folder, load, program_folders, read_tensors
from lowering.runtime.forecasters import open_forecaster, read_card
from lowering.runtime.generate import open_generator
from lowering.runtime.metrics import compare
from lowering.runtime.sampling import Sampling
from lowering.runtime.series_files import read_series, write_forecasts
from lowering.runtime.tensors import to_numpy

# what "equal" means for each policy when the manifest states nothing
PCC = {"float32": 0.999, "bfloat16": 0.999, "bfloat8_b": 0.99}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="lowering.runtime",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bisect", action="store_true", help="compare every op that was recorded")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--generate", metavar="IDS", help="continue these tokens: 1,5,9")
    parser.add_argument("--count", type=int, default=32, help="tokens to generate (32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest (default)")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--forecast", type=Path, metavar="FILE", help="forecast its series")
    parser.add_argument("--samples", type=int, default=100, help="samples of each series (100)")
    parser.add_argument("--out", type=Path, help="the forecasts, .csv or .npz")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.generate is not None:
            return _generate(options)
        if options.forecast is not None:
            return _forecast(options)
        if len(parts := program_folders(options.folder)) > 1:
            names = " or ".join(map(str, parts))
            raise ValueError(
                f"{options.folder} holds two programs; run {names}, or --generate or --forecast"
            )
        folder = load(options.folder)
        report = run_sample(folder, folder.golden() if options.bisect else {})
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))
    for row in (*report["ops"], *report["outputs"]):
        print(" ".join(f"{key}={_text(value)}" for key, value in row.items()))
    print(f"{report['kind']} {report['arch']}: {'ok' if report['ok'] else 'NOT EQUAL'}")
    if report["kind"] == "mock":
        print("a mock device checks that every op is accepted; it computes no numbers")
    return 0 if report["ok"] else 1


def _generate(options: argparse.Namespace) -> int:
    """Print a continuation, token by token."""
    prompt = [int(number) for number in options.generate.split(",")]
    sampling = Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    with open_device() as device:
        generator = open_generator(options.folder, device)
        for (token,) in generator.stream([prompt], options.count, sampling):
            print(token, end=" ", flush=True)
        del generator
    print()
    if device_kind() == "mock":
        print("a mock device computes no numbers: these tokens mean nothing")
    return 0


def _forecast(options: argparse.Namespace) -> int:
    """Write the forecasts of a file's series; exit status 1 when a series has none."""
    if options.out is None or options.out.suffix not in (".csv", ".npz"):
        raise ValueError(
            f"--out is {options.out}; --forecast needs a file.csv or file.npz to write"
        )
    card = read_card(options.folder)
    series = read_series(options.forecast, targets=card.targets, covariates=card.covariates)
    with open_device() as device:
        forecaster = open_forecaster(options.folder, device)
        found = forecaster.forecast(
            [*series.values()],
            num_samples=options.samples,
            seed=options.seed,
            progress=lambda done: print(f"{done}/{len(series)} series", flush=True),
        )
        del forecaster
    results = dict(zip(series, found, strict=True))
    bad = {name: one for name, one in results.items() if isinstance(one, ValueError)}
    good = {name: one for name, one in results.items() if not isinstance(one, ValueError)}
    if good:
        write_forecasts(options.out, good)
        print(f"forecasts of {len(good)} series: {options.out}")
    for name, error in bad.items():
        print(f"no forecast of {name}: {error}", file=sys.stderr)
    if device_kind() == "mock":
        print("a mock device computes no numbers: these forecasts mean nothing")
    return 1 if bad else 0


def continue_prompt(argument: dict[str, Any]) -> list[list[int]]:
    """`Generator.generate` of a folder given by path, for child processes."""
    with open_device() as device:
        generator = open_generator(argument["directory"], device)
        tokens = generator.generate(argument["prompts"], argument["count"])
        del generator
    return tokens


def run_directory(argument: dict[str, Any]) -> dict[str, Any]:
    """`run_sample` of a folder given by path, for child processes.

    `golden`: None, or a safetensors file of what ops should give. `progress`: a file that then
    always holds the index of the op that comes next.
    """
    folder, place = load(argument["directory"]), argument["golden"]
    if place is None:
        return run_sample(folder, {})
    progress = Path(argument["progress"])
    return run_sample(folder, read_tensors(Path(place)), lambda n: progress.write_text(str(n + 1)))


def run_sample(
    folder: Folder, golden: Mapping[str, np.ndarray], on_done: Callable[[int], Any] | None = None
) -> dict[str, Any]:
    """Metrics of the sample's outputs, and of each value of which `golden` has numbers; JSON
    values.

    What is compared is read back as soon as it is there; `on_done` hears the op's index then.
    """
    ttnn = import_ttnn()
    rows: list[dict[str, Any]] = []

    def on_op(index: int, op: Op, results: Sequence[Any]) -> None:
        for value, tensor in zip(op.outputs, results, strict=True):
            if value.name in golden:
                expected = golden[value.name]
                metrics = compare(np.broadcast_to(to_numpy(ttnn, tensor), expected.shape), expected)
                place = {"op": index, "name": op.name, "value": value.name}
                rows.append(place | asdict(metrics) | {"source": str(op.source)})
        if on_done is not None:
            on_done(index)

    sample = folder.example()
    expected = {f"output.{index}": array for index, array in enumerate(sample.outputs)}
    expected |= sample.after
    with open_device() as device:
        session = Session(folder.program, folder.weights, device)
        session.set_state(sample.before)
        outputs = session.run(sample.inputs, on_op if golden or on_done else None)
        found = [*outputs, *session.state().values()]
        arch = arch_name(device)
        del session
    kind = device_kind()
    metrics = [compare(array, expected[name]) for name, array in zip(expected, found, strict=True)]
    tolerances = folder.manifest.get("tolerances", {})
    least = float(tolerances.get("pcc", PCC[folder.program.policy]))
    return {
        "kind": kind,
        "arch": arch,
        "policy": folder.program.policy,
        "least_pcc": least,
        "ok": kind == "mock" or all(metric.pcc >= least for metric in metrics),
        "outputs": [
            {"output": name} | asdict(metric)
            for name, metric in zip(expected, metrics, strict=True)
        ],
        "ops": rows,
    }


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
