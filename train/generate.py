"""Continue prompts with the model of a folder: a published checkpoint, or a trained run."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax

from moejax.generation.generate import GenerationConfig, Generator
from moejax.generation.text import Completion, TextRun
from moejax.interop.lm import load_lm
from moejax.interop.tokenizer import Tokenizer, load_tokenizer
from moejax.models.moe_lm import LMConfig
from train.api import load_run
from train.lm_task import model_variables
from train.workdir import Workdir, write_text

# Tokens of one call of the compiled loop where nobody reads along.
CHUNK = 16


@dataclass(frozen=True)
class Speed:
    """Seconds until the first tokens stood, compiling included; tokens made, and their rate.

    The rate is that of the steps after the first call of the loop, which compiles it.
    """

    prompt_tokens: int
    prompt_seconds: float
    new_tokens: int
    tokens_per_second: float

    def describe(self) -> str:
        """Both in a line."""
        return (
            f"prompt: {self.prompt_tokens} tokens in {self.prompt_seconds:.1f} s, compiling"
            f" included; new: {self.new_tokens} tokens, {self.tokens_per_second:,.1f} tokens/s"
        )


def load_model(folder: Path | str, dtype: str | None = None) -> tuple[LMConfig, Any, Tokenizer]:
    """The language model of a folder, its variables and its tokenizer.

    ValueError for a folder that is neither a published model nor a language model's workdir.
    """
    folder = Path(folder)
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} holds no model: it has no config.json. Give the folder of a published"
            " language model, or a workdir of `moejax train`"
        )
    try:
        fields = json.loads(config_file.read_text())
    except ValueError as error:
        raise ValueError(f"{config_file} is damaged: {error}") from error
    if not isinstance(fields, dict) or "recipe" not in fields:
        return *load_lm(folder, dtype=dtype), load_tokenizer(folder)
    if not isinstance(Workdir(folder).read_config().model, LMConfig):
        raise ValueError(
            f"{folder} is a run of {fields['recipe']!r}, which makes no text; `moejax eval` shows"
            " what it does"
        )
    run = load_run(folder)
    return run.config.model, model_variables(run.params), load_tokenizer(folder)


def continue_prompts(
    model: tuple[LMConfig, Any, Tokenizer],
    prompts: Sequence[str],
    config: GenerationConfig,
    *,
    stop: Sequence[str] = (),
    show: Callable[[list[str]], None] | None = None,
) -> tuple[list[Completion], Speed]:
    """The continuations and how fast they came; `show` gets each row's new text as it comes."""
    lm_config, variables, tokenizer = model
    started = time.perf_counter()
    run = TextRun(Generator(lm_config, variables), tokenizer, prompts, config, stop)
    run.wait()
    marks = [(time.perf_counter(), 0)]
    for pieces in run.pieces(1 if show else CHUNK):
        marks.append((time.perf_counter(), run.num_new_tokens))
        if show:
            show(pieces)
    # a first mark before the loop, one with the first tokens, one with the loop compiled
    start = marks[2] if len(marks) > 4 else marks[0]
    seconds, tokens = marks[-1][0] - start[0], marks[-1][1] - start[1]
    return run.results(), Speed(
        run.num_prompt_tokens,
        marks[0][0] - started,
        run.num_new_tokens,
        tokens / max(seconds, 1e-9),
    )


def write_json(
    path: Path | str, results: list[Completion], config: GenerationConfig, speed: Speed
) -> None:
    """Prompts, continuations, settings and speed as a JSON object."""
    found = {
        "completions": [asdict(one) for one in results],
        "config": asdict(config),
        "speed": asdict(speed),
        "backend": jax.default_backend(),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
