"""Speed of MoLE on the CPU: training and scoring, 336 steps of 7 channels in, 96 out.

Training is what `moejax train` runs: the grain iterator's batches of 8 through `Trainer`, an epoch
a time; scoring is what `moejax eval` runs. The series is made from a seed and as long as ETTh1's.
Baseline of the windows a second: one jitted call a batch of 8 from a Python loop. Baseline of the
FLOP rows: the machine's float32 matmul rate, the best of two square sizes, in turns with them.

FLOPs are those of the experts' matmuls alone, 2 for a multiply-add: each window costs a forward
C*S*K*P*2 in each of the two projections, and in training as much again for the gradient of each
kernel. The router, the moving average, the mixture and Adam are not counted, so the share that is
printed is lower than what the processor does.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import recipes
from train.bench import Row, interleave
from train.config import Config
from train.data import Dataset, Scaler, Series, Splits, time_features
from train.loop import make_iterator
from train.optim import make_optimizer
from train.recipes import mole
from train.step import Scorer, Trainer, TrainState, init_state, make_call
from train.task import Task

ROUNDS = 7
ROWS, CHANNELS, BATCH = 17420, 7, 8
WINDOWS_PER_S, MATMUL_SHARE = 10_000, 0.35
MATMUL_SIZES = (1024, 2048)
BASELINE_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: what is timed by name, and the windows that each handles."""

    config: Config
    timed: dict[str, Callable[[], Any]]
    windows: dict[str, int]


def measure(say: Callable[[str], Any] = print) -> list[Row]:
    """All rows of the suite."""
    say("compiling")
    cases = {"dlinear": make_case(1), "mole_k4": make_case(4)}
    timed = {
        f"{name} {what}": function
        for name, case in cases.items()
        for what, function in case.timed.items()
    }
    timed |= {f"matmul {size}": make_matmul(size) for size in MATMUL_SIZES}
    say(f"measuring, {ROUNDS} rounds")
    seconds = interleave(timed, rounds=ROUNDS)
    rate = max(2 * size**3 / seconds[f"matmul {size}"] / 1e9 for size in MATMUL_SIZES)
    rows = [Row(name="machine_matmul", metric="float32 matmul", value=rate, unit="GFLOP/s")]
    for name, case in cases.items():
        speeds = {what: case.windows[what] / seconds[f"{name} {what}"] for what in case.timed}
        rows += _rows(name, case, speeds, rate)
    return rows


def _rows(name: str, case: Case, speeds: dict[str, float], rate: float) -> list[Row]:
    """Windows a second and FLOPs of training and scoring; DLinear has a target for the former, MoLE
    for the latter.
    """
    rows = []
    single = case.config.model.num_experts == 1
    for what, factor in (("train", 2), ("score", 1)):
        speed = Row(
            name=f"{name}_{what}",
            metric=f"{what} 336->96",
            value=speeds[what],
            unit="windows/s",
            baseline=speeds[f"{what} loop"],
            target=WINDOWS_PER_S if single else None,
        )
        flops = Row(
            name=f"{name}_{what}_flops",
            metric=f"{what} 336->96, matmuls of the experts",
            value=factor * expert_flops(case.config) * speeds[what] / 1e9,
            unit="GFLOP/s",
            baseline=rate,
            target=None if single else MATMUL_SHARE,
            of_baseline=True,
        )
        rows += [speed, flops]
    return rows


def expert_flops(config: Config) -> int:
    """Forward FLOPs a window of the experts' two projections."""
    size = config.model
    return 2 * 2 * size.num_channels * size.seq_len * size.num_experts * size.pred_len


def make_case(num_experts: int) -> Case:
    """DLinear or MoLE_DLinear at 336 -> 96, compiled and ready."""
    config = make_config(num_experts)
    dataset = make_dataset(config)
    task = mole.make_task(config, dataset)
    task = replace(task, arrays=jax.device_put(task.arrays))
    steps = len(task.indices["train"]) // BATCH
    optimizer = make_optimizer(config.optim, steps_per_epoch=steps, epochs=config.loop.epochs)
    trainer = Trainer(task, optimizer, unroll=config.loop.unroll)
    state = init_state(task, optimizer, config.loop.seed)
    iterator = make_iterator(task, config.loop)
    scorer = Scorer(task, batch_size=config.loop.eval_batch_size)
    shape = (min(steps, config.loop.steps_per_call), BATCH)
    trainer.prepare(state, shape)
    return Case(
        config=config,
        timed={
            "train": _epoch(trainer, state, iterator, -(-steps // config.loop.steps_per_call)),
            "train loop": _train_loop(task, optimizer, state),
            "score": lambda: scorer.scores(state.params, "test"),
            "score loop": _score_loop(task, state.params),
        },
        windows={
            "train": steps * BATCH,
            "train loop": BASELINE_STEPS * BATCH,
            "score": len(task.indices["test"]),
            "score loop": BASELINE_STEPS * BATCH,
        },
    )


def make_config(num_experts: int) -> Config:
    """The recipe mole_etth1 at 336 -> 96 and batch 8; one expert: DLinear."""
    config = recipes.build("mole_etth1")
    base = {"router": "none", "head_dropout": 0.0} if num_experts == 1 else {}
    model = replace(config.model, seq_len=336, num_experts=num_experts, **base)
    return replace(config, model=model, loop=replace(config.loop, batch_size=BATCH))


def make_dataset(config: Config) -> Dataset:
    """Daily waves and noise, cut and scaled as ETTh1 is."""
    hours = np.arange(ROWS)
    waves = np.sin(2 * np.pi * hours / 24)[:, None] * np.arange(1, CHANNELS + 1)
    values = waves + np.random.default_rng(0).standard_normal((ROWS, CHANNELS))
    start = np.datetime64("2016-07-01T00:00:00", "s")
    series = Series(
        name="waves",
        values=values,
        dates=start + hours * np.timedelta64(3600, "s"),
        columns=tuple(f"wave {index}" for index in range(CHANNELS)),
        source="made from a seed",
        num_targets=CHANNELS,
    )
    splits, size = Splits.months(ROWS, 24), config.model
    scaler = Scaler.fit(values[slice(*splits.train)])
    return Dataset(
        series=series,
        scaler=scaler,
        splits=splits,
        scaled=scaler.transform(values).astype(np.float32),
        marks=time_features(series.dates).astype(np.float32),
        seq_len=size.seq_len,
        pred_len=size.pred_len,
        starts={
            part: splits.starts(part, size.seq_len, size.pred_len)
            for part in ("train", "val", "test")
        },
    )


def make_matmul(size: int) -> Callable[[], Any]:
    """A square float32 product, as XLA runs it."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.float32) for i in (0, 1))
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b).block_until_ready()


def _epoch(trainer: Trainer, state: TrainState, iterator: Any, calls: int) -> Callable[[], Any]:
    def epoch() -> None:
        for _ in range(calls):
            trainer.run(state, next(iterator))

    return epoch


def _baseline_batches(task: Task, part: str) -> np.ndarray:
    """Indices [steps,batch] of windows in random order."""
    order = np.random.default_rng(0).permutation(task.indices[part])
    return order[: BASELINE_STEPS * BATCH].reshape(BASELINE_STEPS, BATCH)


def _train_loop(task: Task, optimizer: Any, state: TrainState) -> Callable[[], Any]:
    """The same step, compiled alone and called from Python, a batch at a time."""
    call = make_call(task, optimizer)
    copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    batches = _baseline_batches(task, "train")

    def steps() -> None:
        now = copy(state)
        for indices in batches:
            now, _, _ = call(now, task.arrays, indices[None])
        jax.block_until_ready(now)

    return steps


def _score_loop(task: Task, params: Any) -> Callable[[], Any]:
    """The same errors, a batch at a time, each fetched as it comes."""
    errors = jax.jit(lambda params, arrays, rows: task.errors(params, task.cut(arrays, rows)))
    batches = _baseline_batches(task, "test")

    def steps() -> None:
        for indices in batches:
            jax.device_get(errors(params, task.arrays, indices))

    return steps
